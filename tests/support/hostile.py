"""Damages weight, latent and conditioning files in seeded ways, as strangers' disks and hands do.

``mutations`` knows the inside of a safetensors file: its header as JSON, its names, shapes, settings and bytes. What
else can stand in a file's place (pickles, folders, indices, pipes) is made by ``hostile_places``.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save

NESTING = 100_000
# Written as text after json.dumps, because Python has no value that becomes them.
_RAW = {"@nested@": "[" * NESTING + "]" * NESTING, "@inf@": "1e999", "@long@": "9" * 10_000, "@open@": "["}

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 1.5, 2.0, float("nan"), float("inf"), "", "x", "8", [], [[]], {}, {"a": 1}, [None],
    [1, 2], [8, 8, -1], ["a", "b", "c"], {"a": 1, "b": 2, "c": 3}, 2**31, 2**63 - 1, 2**64, 10**30, -(2**63),
    "\ud800", "\x00", "a\nb", "x" * 100_000, list(range(3000)), "@nested@", "@inf@", "@long@",
)  # fmt: skip
ODD_NUMBERS = ("999999999", "100000", "-1", "", "00", "1e3", "٣", "9" * 5000, "x", "7")
ODD_NAMES = (
    "",
    ".",
    "..",
    "a\nb",
    "\x00",
    "\ud800",
    "opensora.config",
    "__metadata__",
    "x" * 100_000,
    "model." * 20_000,
)
SETTINGS = ("groups", "kernel_size", "use_spatial_rope", "input_sq_size", "overlap", "normalization", "hidden_size")
QUANTISED = "_quantization_metadata"


@dataclass
class Parts:
    """A safetensors file taken apart; ``tensors`` maps names to dtype, shape and bytes."""

    tensors: dict[str, tuple[str, list[Any], bytes]]
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: bytes) -> Parts:
        """The parts of a sound file."""
        start = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:start])
        metadata = header.pop("__metadata__", {})
        cut = {n: file[start + e["data_offsets"][0] : start + e["data_offsets"][1]] for n, e in header.items()}
        return cls({n: (e["dtype"], e["shape"], cut[n]) for n, e in header.items()}, metadata)

    def header(self) -> dict[str, Any]:
        """The header as the format wants it."""
        header: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        position = 0
        for name, (dtype, shape, data) in self.tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
            position += len(data)
        return header

    def data(self) -> bytes:
        """All tensors' bytes in a row."""
        return b"".join(data for _, _, data in self.tensors.values())

    def pack(self, header: Mapping[str, Any] | None = None) -> bytes:
        """The file, with another header if one is given."""
        return packed(dumped(self.header() if header is None else header), self.data())


def dumped(value: Any) -> str:
    """JSON text; the marks of values Python cannot hold become those values."""
    text = json.dumps(value)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def packed(header: str, data: bytes) -> bytes:
    """A safetensors file of a header's text and the bytes behind it."""
    text = header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def with_one_odd(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one place replaced, removed or wrapped."""
    value = json.loads(json.dumps(value))
    spots = list(places(value))
    if not spots:
        return rng.choice(ODD)
    container, key = rng.choice(spots)
    how = rng.randrange(4)
    if how == 0 and isinstance(container, dict):
        del container[key]
    elif how == 1:
        container[key] = [container[key]]
    else:
        container[key] = rng.choice(ODD)
    return value


Mutate = Callable[[random.Random, Parts], bytes]


def flipped(rng: random.Random, file: bytes, first: int, last: int) -> bytes:
    """Some bytes of a stretch replaced by others."""
    damaged = bytearray(file)
    for _ in range(rng.choice((1, 1, 3, 20))):
        damaged[rng.randrange(first, max(first + 1, last))] = rng.randrange(256)
    return bytes(damaged)


def flip_header(rng: random.Random, parts: Parts) -> bytes:
    """Some bytes of the header, or of its length."""
    file = parts.pack()
    return flipped(rng, file, 0 if rng.random() < 0.3 else 8, 8 + int.from_bytes(file[:8], "little"))


def flip_data(rng: random.Random, parts: Parts) -> bytes:
    """Some bytes of the tensors."""
    file = parts.pack()
    return flipped(rng, file, 8 + int.from_bytes(file[:8], "little"), len(file))


def truncate(rng: random.Random, parts: Parts) -> bytes:
    """The beginning of the file."""
    file = parts.pack()
    return file[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(file)), rng.randrange(len(file)), len(file) - 1))]


def lie_about_length(rng: random.Random, parts: Parts) -> bytes:
    """Another number of header bytes."""
    length = rng.choice((0, 1, 2, 2**31, 2**63, 2**64 - 1, 99_999_999, 100_000_001))
    return length.to_bytes(8, "little") + parts.pack()[8:]


def odd_header(rng: random.Random, parts: Parts) -> bytes:
    """One odd place anywhere in the header."""
    return parts.pack(with_one_odd(rng, parts.header()))


def odd_entry(rng: random.Random, parts: Parts) -> bytes:
    """An odd shape, place or type of one tensor."""
    header = parts.header()
    name = rng.choice(list(parts.tensors))
    what = rng.choice(("shape", "data_offsets", "dtype", "all"))
    if what == "all":
        header[name] = rng.choice(ODD)
    else:
        header[name][what] = rng.choice((*ODD, [rng.choice(ODD)], [rng.choice(ODD), rng.choice(ODD)]))
    return parts.pack(header)


def twisted_offsets(rng: random.Random, parts: Parts) -> bytes:
    """Tensors that overlap, swap ends or begin before the file."""
    header, names = parts.header(), list(parts.tensors)
    first, second = (header[rng.choice(names)] for _ in range(2))
    first["data_offsets"] = rng.choice(
        (second["data_offsets"], first["data_offsets"][::-1], [o + 1 for o in first["data_offsets"]], [0, 0], [-4, 0])
    )
    return parts.pack(header)


def odd_metadata(rng: random.Random, parts: Parts) -> bytes:
    """Free texts that are none."""
    metadata = rng.choice((*ODD, {"opensora.config": rng.choice(ODD)}, {rng.choice(ODD_NAMES): "x"}))
    return parts.pack({"__metadata__": metadata} | {n: e for n, e in parts.header().items() if n != "__metadata__"})


def odd_settings(rng: random.Random, parts: Parts) -> bytes:
    """Settings in the metadata that make no sense."""
    name = rng.choice(SETTINGS)
    text = rng.choice((dumped({name: rng.choice(ODD)}), dumped({name: rng.choice(ODD)}), dumped(rng.choice(ODD)), "{"))
    return Parts(parts.tensors, parts.metadata | {"opensora.config": text}).pack()


def odd_settings_tensor(rng: random.Random, parts: Parts) -> bytes:
    """Settings in their tensor that make no sense."""
    text = dumped({rng.choice(SETTINGS): rng.choice(ODD)}).encode("utf-8", "surrogatepass")
    data = rng.choice((text, text[:-1], bytes(rng.randrange(256) for _ in range(40)), b""))
    dtype, size = rng.choice((("U8", 1), ("U8", 1), ("F32", 4), ("BOOL", 1)))
    entry = (dtype, [len(data) // size], data[: len(data) // size * size])
    return Parts(parts.tensors | {"opensora.config": entry}, parts.metadata).pack()


def odd_notes(rng: random.Random, parts: Parts) -> bytes:
    """Notes of a latent or a conditioning that make no sense."""
    keys = [key for key in parts.metadata if key.startswith("opensora.") and key != "opensora.version"]
    key = rng.choice(keys or ["opensora.decode"])
    try:
        found = json.loads(parts.metadata.get(key, "{}"))
    except ValueError:
        found = {}
    text = dumped(rng.choice((with_one_odd(rng, found), with_one_odd(rng, found), rng.choice(ODD))))
    return Parts(parts.tensors, parts.metadata | {key: rng.choice((text, text, text, "", "{", text[:-1]))}).pack()


def renumber(rng: random.Random, parts: Parts) -> bytes:
    """One counted name gets another number."""
    counted = [name for name in parts.tensors if any(part.isdigit() for part in name.split("."))]
    name = rng.choice(counted or list(parts.tensors))
    pieces = name.split(".")
    spots = [n for n, piece in enumerate(pieces) if piece.isdigit()] or [0]
    pieces[rng.choice(spots)] = rng.choice(ODD_NUMBERS)
    tensors = dict(parts.tensors)
    tensors[".".join(pieces)] = tensors[name] if rng.random() < 0.5 else tensors.pop(name)
    return Parts(tensors, parts.metadata).pack()


def rename(rng: random.Random, parts: Parts) -> bytes:
    """One tensor under an impossible name."""
    name = rng.choice(list(parts.tensors))
    new = rng.choice((*ODD_NAMES, name + ".", name.rpartition(".")[0], name.upper(), name + "\n"))
    return Parts({new if n == name else n: v for n, v in parts.tensors.items()}, parts.metadata).pack()


def wrap_names(rng: random.Random, parts: Parts) -> bytes:
    """Wrappers before all names or some."""
    wrapper = rng.choice(
        ("model.", "module.", "model.diffusion_model.", "first_stage_model.", "vae.", "a.", "model." * 9)
    )
    some = rng.random() < 0.3
    new = {n if some and rng.random() < 0.5 else wrapper + n: value for n, value in parts.tensors.items()}
    return Parts(new, parts.metadata).pack()


def leave_out(rng: random.Random, parts: Parts) -> bytes:
    """One tensor, everything below one name, or nearly everything."""
    name = rng.choice(list(parts.tensors))
    start = rng.choice((name, name.rpartition(".")[0], name.split(".")[0]))
    kept = {n: v for n, v in parts.tensors.items() if not n.startswith(start)}
    if rng.random() < 0.15:
        kept = {name: parts.tensors[name]}
    return Parts(kept, parts.metadata).pack()


def reshape(rng: random.Random, parts: Parts) -> bytes:
    """Another shape, with the bytes it needs: the file itself is sound."""
    name = rng.choice(list(parts.tensors))
    dtype, shape, data = parts.tensors[name]
    size = len(data) // max(1, math.prod(shape))
    new = rng.choice(
        ([], [0], [1], [0, *shape], shape[:-1], shape[:1], [*shape, 1], shape[::-1], [s and 1 for s in shape],
         [0 for _ in shape], [2 * s for s in shape], [s + 1 for s in shape], [1] * 40, [7, *shape[1:]],
         [*shape[:1], 3, *shape[2:]])
    )  # fmt: skip
    entry = (dtype, new, bytes(size * math.prod(new)))
    return Parts(parts.tensors | {name: entry}, parts.metadata).pack()


def retype(rng: random.Random, parts: Parts) -> bytes:
    """Another dtype for one tensor or for all, with the bytes it needs."""
    dtype, size = rng.choice(
        (("I64", 8), ("BOOL", 1), ("U8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F64", 8), ("F8_E8M0", 1), ("U64", 8),
         ("F4", 1), ("C64", 8), ("XYZ", 2), ("I16", 2))
    )  # fmt: skip
    chosen = list(parts.tensors) if rng.random() < 0.5 else [rng.choice(list(parts.tensors))]
    tensors = dict(parts.tensors)
    for name in chosen:
        shape = tensors[name][1]
        tensors[name] = (dtype, shape, bytes(size * math.prod(shape)))
    return Parts(tensors, parts.metadata).pack()


def quantise(rng: random.Random, parts: Parts) -> bytes:
    """The marks of ComfyUI's quantised files, wrong."""
    name = rng.choice(list(parts.tensors)).rpartition(".")[0]
    conf = rng.choice((b"{}", b"{", b'{"format": "float8_e4m3fn"}', b'{"format": 5}', b'{"format": "x"}', b"", b"[1]"))
    extra, metadata = {}, dict(parts.metadata)
    how = rng.randrange(4)
    if how == 0:
        extra = {f"{name}.comfy_quant": ("U8", [len(conf)], conf)}
    elif how == 1:
        extra = {"scaled_fp8": ("U8", [rng.choice((0, 1, 2))], b"")}
        extra["scaled_fp8"] = ("U8", extra["scaled_fp8"][1], bytes(extra["scaled_fp8"][1][0]))
        extra[f"{name}.scale_input"] = ("F32", [2], bytes(8))
    elif how == 2:
        extra = {f"{name}.weight_scale": ("F32", [3], bytes(12))}
    layers = {name: {"format": "float8_e4m3fn"}}
    if how > 1:
        good = {"format_version": "1.0", "layers": layers}
        metadata[QUANTISED] = dumped(rng.choice((with_one_odd(rng, good), rng.choice(ODD), good)))
    return Parts(parts.tensors | extra, metadata).pack()


def duplicate(rng: random.Random, parts: Parts) -> bytes:
    """One name twice in the header."""
    header = dumped(parts.header())
    name = rng.choice(list(parts.tensors))
    return packed(f"{header[:-1]}, {json.dumps(name)}: {dumped(parts.header()[name])}}}", parts.data())


def many(rng: random.Random, parts: Parts) -> bytes:
    """Thousands of empty blocks, numbered without a gap."""
    counted = [name for name in parts.tensors if any(part.isdigit() for part in name.split("."))]
    pieces = rng.choice(counted or ["a.0.b"]).split(".")
    spot = rng.choice([n for n, piece in enumerate(pieces) if piece.isdigit()])
    names = [".".join([*pieces[:spot], str(n), *pieces[spot + 1 :]]) for n in range(5000)]
    return Parts(dict.fromkeys(names, ("F32", [0], b"")) | parts.tensors, parts.metadata).pack()


def not_numbers(rng: random.Random, parts: Parts) -> bytes:
    """A tensor of which every bit is set."""
    name = rng.choice(list(parts.tensors))
    dtype, shape, data = parts.tensors[name]
    return Parts(parts.tensors | {name: (dtype, shape, b"\xff" * len(data))}, parts.metadata).pack()


MUTATIONS: tuple[Mutate, ...] = (
    flip_header, flip_data, truncate, lie_about_length, odd_header, odd_entry, twisted_offsets, odd_metadata,
    odd_settings, odd_settings_tensor, odd_notes, renumber, rename, wrap_names, leave_out, reshape, retype, quantise,
    duplicate, many, not_numbers,
)  # fmt: skip


def packed_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A sound file of these tensors."""
    return save(dict(tensors), dict(metadata) if metadata else None)
