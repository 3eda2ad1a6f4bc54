"""Everything a stranger may point a loader at: damaged files of each kind, pickles, folders, indices, pipes and links.

Each maker writes one thing below a folder and gives the path a loader is handed. ``judge`` runs the loader of the kind
and says what is wrong with what happened, if anything.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_bytes

from support import random_weights
from support.hostile import MUTATIONS, ODD, ODD_NAMES, Parts, dumped, packed_tensors, with_one_odd

SECONDS = 10.0  # what one file may take
LONGEST = 1000  # characters of a message
MARKER = "code-was-run"
SMALL = {"hidden_size": 24, "num_heads": 2, "depth": 1, "caption_channels": 8, "text_length": 4}
VAE_WIDTHS = [8, 8, 8, 8]


class Case(NamedTuple):
    """One thing to load: the loader's kind, what was done, and the path(s)."""

    kind: str
    how: str
    path: Path
    spatial: Path | None = None


class Slow(BaseException):
    """Raised by the alarm; nobody catches it by accident."""


def models(version: str) -> bytes:
    """The smallest diffusion model."""
    weights = random_weights.fill(random_weights.stdit3_shapes(version, **SMALL))
    return packed_tensors(weights, {"opensora.config": "{}"})


def mmdit() -> bytes:
    """The smallest diffusion model of 2.0."""
    sizes = {"hidden_size": 24, "num_heads": 2, "double": 1, "single": 1, "caption_channels": 8, "pooled": 4}
    return packed_tensors(random_weights.fill(random_weights.mmdit_shapes("2.0", **sizes)), {"opensora.config": "{}"})


def image_vae() -> dict[str, torch.Tensor]:
    """The smallest spatial half."""
    return random_weights.fill(random_weights.image_shapes(VAE_WIDTHS, 1))


def temporal_vae() -> dict[str, torch.Tensor]:
    """The smallest temporal half."""
    return random_weights.fill(random_weights.temporal_shapes(8, 1))


def pipeline_vae() -> dict[str, torch.Tensor]:
    """Both halves in one file."""
    weights = {f"spatial_vae.module.{name}": value for name, value in image_vae().items()}
    weights |= {f"temporal_vae.{name}": value for name, value in temporal_vae().items()}
    return weights | {"shift": torch.zeros(1, 4, 1, 1, 1), "scale": torch.ones(1, 4, 1, 1, 1)}


def causal_vae() -> dict[str, torch.Tensor]:
    """The smallest 1.3 autoencoder."""
    return random_weights.fill(random_weights.causal_shapes(VAE_WIDTHS, 1))


def text_encoder() -> bytes:
    """The smallest T5 with the whole vocabulary."""
    weights = random_weights.fill(random_weights.t5_shapes(8, 16, 4, 2, 1, 32128))
    return packed_tensors({name: weight.half() for name, weight in weights.items()})


def clip_l() -> bytes:
    """The smallest CLIP-L with the whole vocabulary."""
    weights = random_weights.fill(random_weights.clip_shapes(4, 8, 1))
    return packed_tensors({name: weight.half() for name, weight in weights.items()})


def latent() -> bytes:
    """Latents with their notes."""
    notes = {"version": "1.2", "num_frames": 17, "frame_rate": 24.0}
    tensors = {"latent_tensor": torch.zeros(1, 4, 5, 2, 2), "latent_format_version_0": torch.zeros(0)}
    return packed_tensors(tensors, {"opensora.decode": json.dumps(notes), "prompt": "{}"})


def conditioning() -> bytes:
    """A pair of conditionings with what ours carry."""
    entries = {"positive": [{"frame_rate": 24.0, "opensora_text": "2.0"}], "negative": [{"pooled_output": None}]}
    text = json.dumps({"format": 1, "entries": entries, "note": "a"})
    tensors = {"positive.0.text": torch.zeros(1, 3, 8), "negative.0.text": torch.zeros(1, 2, 8)}
    tensors["positive.0.opensora_given_latent"] = torch.zeros(1, 4, 1, 2, 2)
    tensors["positive.0.pooled_output"] = torch.zeros(1, 4)
    return packed_tensors(tensors, {"opensora.conditioning": text})


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "model 1.2": (".safetensors", lambda: models("1.2")),
    "model 1.3": (".safetensors", lambda: models("1.3")),
    "model 2.0": (".safetensors", mmdit),
    "vae 1.2": (".safetensors", lambda: packed_tensors(pipeline_vae())),
    "vae 1.3": (".safetensors", lambda: packed_tensors(causal_vae(), {"opensora.config": '{"groups": 4}'})),
    "split vae": (".safetensors", lambda: packed_tensors(temporal_vae())),
    "t5": (".safetensors", text_encoder),
    "clip l": (".safetensors", clip_l),
    "latent": (".latent", latent),
    "conditioning": (".conditioning.safetensors", conditioning),
}
WEIGHTS = tuple(KINDS)[:8]


class Harmful:
    """Unpickling this would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def saved(value: Any, **options: Any) -> bytes:
    """What ``torch.save`` makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def odd_tensors(rng: random.Random) -> torch.Tensor:
    """One that is no plain block of numbers, or much larger than what it stands on."""
    makers: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.empty(3, 3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.zeros(1).expand(2**20, 2**20),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch.zeros(0),
        lambda: torch.tensor(1.0),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.zeros(3, requires_grad=True),
        lambda: torch.nn.Parameter(torch.zeros(3)),
    )
    return rng.choice(makers)()


def pickles(rng: random.Random, weights: dict[str, Any], marker: Path) -> tuple[str, bytes]:
    """What a ``.pt`` file may hold instead of these weights."""
    name = rng.choice(list(weights))
    deep: Any = {}
    for _ in range(200):
        deep = [deep]
    nested: Any = weights
    for key in rng.choices(("ema", "state_dict", "model", "module", "x"), k=3):
        nested = {key: nested}
    whole = saved(weights, _use_new_zipfile_serialization=rng.random() < 0.5)
    spot = rng.randrange(len(whole))
    broken = bytearray(whole)
    broken[spot] ^= 1 + rng.randrange(255)
    choices: dict[str, Callable[[], bytes]] = {
        "odd tensor": lambda: saved(weights | {name: odd_tensors(rng)}),
        "odd value": lambda: saved(weights | {name: rng.choice((None, 5, "x", [1], {"a": 1}, deep))}),
        "odd key": lambda: saved(weights | {rng.choice((5, None, ("a", 1), *ODD_NAMES)): torch.zeros(2)}),
        "no dictionary": lambda: saved(rng.choice((None, 5, "x", [weights], (), deep, torch.zeros(2), set()))),
        "nested": lambda: saved(nested),
        "code": lambda: saved(weights | {"x": Harmful(marker)}),
        "code, old format": lambda: saved({"x": Harmful(marker)}, _use_new_zipfile_serialization=False),
        "code alone": lambda: __import__("pickle").dumps(Harmful(marker)),
        "text": lambda: rng.choice((b"hello", b"", b"\x80", b"<html>" * 50, b"(" * 100_000, b"\x80\x02}q\x00.", b"PK")),
        "cut": lambda: whole[:spot],
        "flipped": lambda: bytes(broken),
        "bomb": lambda: zipped(whole if whole[:2] == b"PK" else saved(weights)),
        "empty zip": lambda: zip_of({}),
        "other zip": lambda: zip_of({"a/b.txt": b"x"}),
        "noise": lambda: rng.randbytes(500),
    }
    how = rng.choice(list(choices))
    return how, choices[how]()


def zip_of(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zipped(file: bytes) -> bytes:
    """The same archive compressed, with 20 MB of zeros instead of one tensor's bytes."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    largest = max(files, key=lambda name: len(files[name]) if "/data/" in name else -1)
    files[largest] = bytes(20_000_000)
    return zip_of(files, zipfile.ZIP_DEFLATED)


def shards(rng: random.Random, folder: Path, file: bytes) -> tuple[str, Path]:
    """A folder of shards with something wrong in its index or its names."""
    weights = load_bytes(file)
    names = sorted(weights)
    files = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    for number, shard in enumerate(files):
        (folder / shard).write_bytes(packed_tensors({name: weights[name] for name in names[number::2]}))
    index: Any = {"metadata": {}, "weight_map": {name: files[n % 2] for n, name in enumerate(names)}}
    how = rng.choice(("index", "index", "raw index", "numbers", "config", "config", "missing", "shard"))
    target = folder
    if how == "index":
        index = with_one_odd(rng, index) if rng.random() < 0.5 else rng.choice((*ODD, {"weight_map": rng.choice(ODD)}))
    if how == "config":
        settings = rng.choice(("kernel_size", "use_spatial_rope", "input_sq_size", "depth", "groups"))
        text = dumped(rng.choice(({settings: rng.choice(ODD)}, rng.choice(ODD))))
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    if how == "missing":
        (folder / files[0]).unlink()
    if how == "shard":
        (folder / files[0]).write_bytes(rng.choice(MUTATIONS)(rng, Parts.of((folder / files[0]).read_bytes())))
    text = "\xff{" if how == "raw index" else dumped(index)
    (folder / "model.safetensors.index.json").write_bytes(text.encode("latin-1" if how == "raw index" else "utf-8"))
    if how == "numbers":
        (folder / "model.safetensors.index.json").unlink()
        target = folder / rng.choice(("m-00001-of-00000.safetensors", "m-00007-of-00002.safetensors",
                                      "m-00000-of-00001.safetensors", "m-00001-of-99999.safetensors"))  # fmt: skip
        target.write_bytes(file)
    return f"shards: {how}", target


def oddities(rng: random.Random, folder: Path, name: str) -> tuple[str, Path]:
    """Something that is no file where a file is expected."""
    path = folder / name
    how = rng.choice(("folder", "pipe", "dangling", "loop", "device", "surrogate", "latin-1", "gone", "long", "zero"))
    if how == "folder":
        path.mkdir()
        if rng.random() < 0.5:
            (path / "a.safetensors").mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop"):
        path.symlink_to(folder / "nowhere" if how == "dangling" else path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "surrogate":
        path = folder / f"\ud800{name}"
    elif how == "latin-1":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/\xe4" + os.fsencode(name)))
        path.write_bytes(b"x")
    elif how == "long":
        path = folder / ("x" * 300 + name)
    elif how == "zero":
        path = folder / f"a\x00{name}"
    return how, path


def cases(root: Path, seed: int, count: int) -> Iterator[Case]:
    """``count`` things to load, written below ``root`` one after the other; the same ones for the same seed."""
    sound = {kind: make() for kind, (_, make) in KINDS.items()}
    (root / "image.safetensors").write_bytes(packed_tensors(image_vae()))
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        kind = list(KINDS)[number % len(KINDS)]
        folder = root / f"{number:05d}"
        folder.mkdir()
        yield one_case(rng, kind, sound[kind], folder, root)


def one_case(rng: random.Random, kind: str, file: bytes, folder: Path, root: Path) -> Case:
    """One damaged thing of a kind."""
    ending = KINDS[kind][0]
    spatial = root / "image.safetensors" if kind == "split vae" else None
    draw = rng.random()
    if draw < 0.04 and os.name == "posix":
        return Case(kind, *oddities(rng, folder, f"odd{ending}"), spatial)
    if kind in WEIGHTS and draw < 0.16:
        how, content = pickles(rng, dict(load_bytes(file)), root / MARKER)
        path = folder / "file.pt"
        path.write_bytes(content)
        return Case(kind, f"pickle: {how}", path, spatial)
    if kind in WEIGHTS and draw < 0.24:
        return Case(kind, *shards(rng, folder, file), spatial)
    mutate = rng.choice(MUTATIONS)
    path = folder / f"file{ending}"
    if kind == "split vae" and rng.random() < 0.5:
        (folder / "image.safetensors").write_bytes(mutate(rng, Parts.of((root / "image.safetensors").read_bytes())))
        path.write_bytes(file)
        return Case(kind, f"image: {mutate.__name__}", path, folder / "image.safetensors")
    path.write_bytes(mutate(rng, Parts.of(file)))
    return Case(kind, mutate.__name__, path, spatial)


def load(case: Case) -> Any:
    """What the loader of the case's kind makes of it."""
    from opensora.opensora_models.native.model import loading as model_loading
    from opensora.opensora_models.native.text import clip, clip_l
    from opensora.opensora_models.native.vae import vae
    from opensora.opensora_models.text import conditioning_file
    from opensora.opensora_models.vae import latent_file

    with torch.inference_mode():
        if case.kind.startswith("model"):
            return model_loading.load_model(case.path)
        if case.kind.endswith("vae") or case.kind.startswith("vae"):
            return vae.load_vae(case.path, case.spatial)
        if case.kind == "t5":
            return clip.load_text_encoder(case.path)
        if case.kind == "clip l":
            return clip_l.read_clip_l(case.path)
        if case.kind == "latent":
            return latent_file.load_latent(case.path)
        return conditioning_file.load_conditioning(case.path)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises Slow in the main thread after this time, where the system can."""

    def ring(*_: object) -> None:
        raise Slow

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case) -> str:
    """What is wrong with how the loader took it; "" if nothing: it loaded, or refused in one good sentence."""
    return judged(case)[0]


def judged(case: Case) -> tuple[str, bool]:
    """The same, and whether it loaded."""
    started = time.monotonic()
    try:
        with alarm(SECONDS):
            load(case)
    except Slow:
        return "hang", False
    except ValueError as error:
        return complaint(case, error), False
    except Exception as error:  # a raw error is what this looks for
        return f"raw {type(error).__name__}: {str(error)[:150]!r}", False
    return ("hang" if time.monotonic() - started > SECONDS else ""), True


def complaint(case: Case, error: ValueError) -> str:
    """What is wrong with a refusal as a sentence."""
    text = str(error)
    if type(error) is not ValueError:
        return f"raw {type(error).__name__}: {text[:150]!r}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"unprintable: {text[:150]!r}"
    if "\n" in text or "\r" in text or "\x00" in text:
        return f"more than a line: {text[:150]!r}"
    if len(text) > LONGEST:
        return f"{len(text)} characters: {text[:150]!r}"
    named = {part for path in (case.path, case.spatial) if path for part in (path.name, *inner_names(path))}
    plain = (re.findall("[!-~]{3,100}", name) for name in named)  # what of a name every message can show
    if not any(all(part in text for part in parts) for parts in plain):
        return f"file not named: {text[:150]!r}"
    return "" if text.endswith(".") else f"no sentence: {text[:150]!r}"


def inner_names(path: Path) -> list[str]:
    """Names of the files that lie in a folder, or beside a file."""
    folder = path if os.path.isdir(path) else path.parent
    return os.listdir(folder)
