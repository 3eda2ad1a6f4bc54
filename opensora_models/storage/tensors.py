"""Tensors in a safetensors file, with a checksum over all it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from .identity import tensor_digest

CHECKSUM = "opensora.sha256"
"""The metadata that holds the checksum; files of other programs and of older versions have none."""


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors into the file at ``path``.

    The function of this name in safetensors writes under a name of its own and renames, so that a process that dies
    leaves a file nobody knows, and the file that was flushed and locked before is another one.
    """
    texts = dict(metadata or {})
    path.write_bytes(save(dict(tensors), metadata={**texts, CHECKSUM: checksum(tensors, texts)}))


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors of any device as the content of a safetensors file; who keeps it checks it."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """The inverse of :func:`to_bytes`, on the CPU."""
    return load(content)


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Over names, shapes, dtypes and every bit of all tensors, and all metadata."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0".encode() + tensor_digest(tensors[name]))
    for name, text in sorted(metadata.items()):
        if name != CHECKSUM:
            digest.update(f"{name}\0{text}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def expect_whole(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raise ValueError where a file that was read is not what was written; one without checksum passes."""
    if metadata.get(CHECKSUM) not in (None, checksum(tensors, metadata)):
        raise ValueError("its content does not match its checksum, so it was damaged on disk; save it again.")
