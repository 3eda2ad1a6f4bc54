"""Files of strangers: whatever stands in them, a loader loads it or refuses it in one sentence that names the file."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import hostile_places as places
from support.hostile import NESTING, Parts, packed, packed_tensors
from support.hostile_places import KINDS, Case

pytestmark = pytest.mark.comfy

SEED, FILES = 20, 480
BOUND = 90.0  # seconds for all of them


@pytest.fixture(autouse=True)
def loaders(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders without T5's tokenizer, which reads no file of the person and takes a second to make."""
    from opensora.opensora_models.native.text import clip

    monkeypatch.setattr(clip, "OpenSoraTokenizer", lambda **_: None)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the pack writes to its log, through a handler that shows its own faults."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("opensora")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def written(folder: Path, kind: str, content: bytes | None = None, stem: str = "file") -> Case:
    """A file of a kind, sound unless other content is given."""
    ending, make = KINDS[kind]
    path = folder / f"{stem}{ending}"
    path.write_bytes(make() if content is None else content)
    spatial = None
    if kind == "split vae":
        spatial = folder / "image.safetensors"
        spatial.write_bytes(packed_tensors(places.image_vae()))
    return Case(kind, "given", path, spatial)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_file_loads_whatever_its_name(kind: str, tmp_path: Path) -> None:
    assert places.load(written(tmp_path, kind)) is not None
    if os.name == "posix" and sys.platform != "darwin":
        # Latin-1 bytes, which Python keeps as a lone surrogate.
        assert places.load(written(tmp_path, kind, stem=os.fsdecode(b"\xe4"))) is not None


def test_damaged_files_of_all_kinds(tmp_path: Path, log: io.StringIO) -> None:
    """Seeded damage: nothing hangs, nothing runs, nothing but one good sentence comes out."""
    places.load(written(tmp_path, "model 1.2"))  # the imports are not the file's time
    started, wrong, refused = time.monotonic(), [], 0
    for case in places.cases(tmp_path, SEED, FILES):
        complaint, loaded = places.judged(case)
        wrong += [f"{case.kind}, {case.how}: {complaint}"] if complaint else []
        refused += not loaded
    assert wrong == []
    assert not (tmp_path / places.MARKER).exists()
    assert time.monotonic() - started < BOUND
    assert FILES * 0.5 < refused < FILES, "most damage is found, and some files are still good"
    log.getvalue().encode("utf-8")


def counted(kind: str, name: str) -> Callable[[], bytes]:
    """The sound file with one more empty tensor."""

    def make() -> bytes:
        parts = Parts.of(KINDS[kind][1]())
        return Parts(parts.tensors | {name: ("F32", [1], bytes(4))}, parts.metadata).pack()

    return make


def header(text: str) -> Callable[[], bytes]:
    """A file of this header and nothing behind it."""
    return lambda: packed(text, b"")


def with_shape(kind: str, name: str, shape: list[int]) -> Callable[[], bytes]:
    """The sound file with another shape of one tensor."""

    def make() -> bytes:
        parts = Parts.of(KINDS[kind][1]())
        size = 4
        for side in shape:
            size *= side
        return Parts(parts.tensors | {name: ("F32", shape, bytes(size))}, parts.metadata).pack()

    return make


def with_metadata(kind: str, **metadata: Any) -> Callable[[], bytes]:
    """The sound file with other free texts; ``__`` in a name stands for the point."""

    def make() -> bytes:
        parts = Parts.of(KINDS[kind][1]())
        named = {name.replace("__", "."): value for name, value in metadata.items()}
        return Parts(parts.tensors, parts.metadata | named).pack()

    return make


BIG = "999999999"
NESTED = "[" * NESTING
T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
HEAD = "double_blocks.0.img_attn.norm.query_norm.scale"
EXAMPLES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "model blocks": ("model 1.2", counted("model 1.2", f"spatial_blocks.{BIG}.x"), f"'spatial_blocks.{BIG}' is there"),
    "digits": ("model 1.3", counted("model 1.3", f"temporal_blocks.{'9' * 4000}.x"), "'temporal_blocks.1' is not"),
    "double blocks": ("model 2.0", counted("model 2.0", f"double_blocks.{BIG}.x"), f"'double_blocks.{BIG}' is there"),
    "single blocks": ("model 2.0", counted("model 2.0", f"single_blocks.{'9' * 4000}.x"), "'single_blocks.1' is not"),
    "t5 blocks": ("t5", counted("t5", f"encoder.block.{BIG}.layer.0.x"), f"'encoder.block.{BIG}' is there"),
    "causal levels": ("vae 1.3", counted("vae 1.3", f"encoder.down.{BIG}.x"), "'encoder.down.4' is not"),
    "causal blocks": ("vae 1.3", counted("vae 1.3", "encoder.down.0.block.100000.x"), "0.block.1' is not"),
    "temporal levels": ("vae 1.2", counted("vae 1.2", f"temporal_vae.encoder.block_res_blocks.{BIG}.0.x"), "is not"),
    "image levels": ("vae 1.2", counted("vae 1.2", f"spatial_vae.module.encoder.down_blocks.{BIG}.x"), "is not"),
    "1e999": ("model 1.2", header('{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}'), "entry 'a'"),
    "brackets": ("model 1.2", header(NESTED), "is not a safetensors file"),
    "nested": ("vae 1.3", header(f'{{"a": {NESTED}{NESTED.replace("[", "]")}}}'), "is not a safetensors file"),
    "metadata null": ("latent", header('{"__metadata__": null}'), "holds no latents"),
    "metadata 5": ("latent", header('{"__metadata__": 5}'), "its metadata is no list"),
    "zero size": ("model 1.2", with_shape("model 1.2", "x_embedder.proj.weight", [0, 4, 1, 2, 2]), "at least 1"),
    "short shape": ("vae 1.3", with_shape("vae 1.3", "encoder.conv_in.conv.weight", [8]), "VAE"),
    "no heads": ("t5", with_shape("t5", T5_BIAS, [32, 0]), "at least 1"),
    "groups x": ("vae 1.3", with_metadata("vae 1.3", opensora__config='{"groups": "x"}'), "groups is 'x'"),
    "groups 3": ("vae 1.2", with_metadata("vae 1.2", opensora__config='{"groups": 3}'), "nearest good value is 2"),
    "window": ("model 1.3", with_metadata("model 1.3", opensora__config='{"kernel_size": [1e9]}'), "expected rows"),
    "no head": ("model 2.0", with_shape("model 2.0", HEAD, [0]), "at least 1"),
    "odd head": ("model 2.0", with_shape("model 2.0", HEAD, [5]), "2.0"),
    "no patch": ("model 2.0", with_shape("model 2.0", "cond_in.weight", [24, 67]), "3 columns more"),
    "axes": ("model 2.0", with_metadata("model 2.0", opensora__config='{"axes_dim": "x"}'), "axes_dim is 'x'"),
    "wide axes": ("model 2.0", with_metadata("model 2.0", opensora__config='{"axes_dim": [4, 4, 99]}'), "value is 12"),
    "theta": ("model 2.0", with_metadata("model 2.0", opensora__config='{"theta": NaN}'), "not a finite number"),
    "theta 0": ("model 2.0", with_metadata("model 2.0", opensora__config='{"theta": 0}'), "theta is 0"),
    "liger": ("model 2.0", with_metadata("model 2.0", opensora__config='{"use_liger_rope": 3}'), "true or false"),
    "empty notes": ("latent", with_metadata("latent", opensora__decode=""), "not valid JSON"),
    "nested notes": ("latent", with_metadata("latent", opensora__decode=NESTED), "nested too deeply"),
    "listed notes": ("latent", with_metadata("latent", opensora__decode="[1]"), "must be a JSON object"),
    "nan notes": ("latent", with_metadata("latent", opensora__decode='{"frame_rate": NaN}'), "not a finite number"),
    "nested description": ("conditioning", with_metadata("conditioning", opensora__conditioning=NESTED), "damaged"),
    "quantisation": ("model 1.2", with_metadata("model 1.2", _quantization_metadata='{"layers": 5}'), "is damaged"),
    "no quantisation": ("t5", with_metadata("t5", _quantization_metadata="{"), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_named_examples(name: str, tmp_path: Path) -> None:
    kind, make, words = EXAMPLES[name]
    case = written(tmp_path, kind, make())
    started = time.monotonic()
    assert places.judge(case) == ""
    assert time.monotonic() - started < 5
    with pytest.raises(ValueError) as error:
        places.load(case)
    assert words in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_read_is_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = written(tmp_path, kind)
    real = open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == str(case.path):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match=f"'{case.path.name}' cannot be read .Permission denied.; check the disk"):
        places.load(case)


@pytest.mark.parametrize("number", ["m-00001-of-00000", "m-00003-of-00002", "m-00000-of-00001"])
def test_shards_that_count_wrong(number: str, tmp_path: Path) -> None:
    case = written(tmp_path, "model 1.2", stem=number)
    with pytest.raises(
        ValueError, match=f"'{number}.safetensors' calls itself part . of .; give the file its original"
    ):
        places.load(case)


def test_a_file_that_shares_its_bytes_cannot_announce_more_than_it_has(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [250_000], "data_offsets": [0, 1_000_000]}
    names = {f"spatial_blocks.{n}.x": entry for n in range(1000)}
    case = written(tmp_path, "model 1.2", packed(json.dumps(names), bytes(1_000_000)))
    with pytest.raises(ValueError, match="lays tensor 'spatial_blocks.1.x' over another one"):
        places.load(case)


def test_pickles_are_plain_tensors_or_refused(tmp_path: Path) -> None:
    weights = places.causal_vae()
    name = "encoder.conv_in.conv.weight"
    for odd, words in (
        (torch.zeros(1).expand(2**20, 2**20), "larger than what is stored"),
        (torch.eye(3).to_sparse(), "is no plain tensor"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "cannot be read as a PyTorch file"),
        (torch.empty(5000, 5000, device="meta"), "bytes of tensors but has"),
    ):
        torch.save(weights | {name: odd}, tmp_path / "vae.pt")
        with pytest.raises(ValueError, match=words):
            places.load(Case("vae 1.3", "odd", tmp_path / "vae.pt"))
    tied = torch.zeros(7)
    torch.save(weights | {"a": tied, "b": tied}, tmp_path / "vae.pt")
    assert places.load(Case("vae 1.3", "tied", tmp_path / "vae.pt")) is not None


def test_scales_that_fit_no_layer(tmp_path: Path) -> None:
    parts = Parts.of(KINDS["model 1.2"][1]())
    scale = {"spatial_blocks.0.attn.qkv.weight_scale": ("F32", [3], bytes(12))}
    case = written(tmp_path, "model 1.2", Parts(parts.tensors | scale, parts.metadata).pack())
    with pytest.raises(
        ValueError, match="has 3 scales in .* for a layer of 72 rows; expected one for all or one for each"
    ):
        places.load(case)


@pytest.mark.skipif(sys.platform != "linux", reason="files of holes")
def test_a_file_of_holes_takes_no_memory(tmp_path: Path) -> None:
    sides = 2**18, 2**18
    size = 4 * sides[0] * sides[1]
    entry = {"dtype": "F32", "shape": [1, 4, *sides], "data_offsets": [0, 4 * size]}
    path = written(tmp_path, "latent", packed(json.dumps({"latent_tensor": entry}), b"")).path
    try:
        os.truncate(path, path.stat().st_size + 4 * size)
    except OSError:
        pytest.skip("the file system makes no file of this size")
    with pytest.raises(ValueError, match="'file.latent' holds .* GB of tensors, and this machine has .* GB of memory"):
        places.load(Case("latent", "holes", path))
