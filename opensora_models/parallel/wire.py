"""Messages between two processes over a pair of pipes: a word, and a tree of plain values and tensors.

Nothing that arrives is executed: the tree is JSON, the tensors are a safetensors file.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Sequence
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

LENGTHS = struct.Struct("<QQ")
"""In front of every message: bytes of the tree, bytes of the tensors."""


class Wire:
    """One end. Any thread may send; one thread receives."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader, self._writer, self._lock = reader, writer, threading.Lock()

    def send(self, word: str, **content: Any) -> None:
        """Raises OSError where nobody listens any more, ValueError for what cannot travel."""
        self.write(message(word, **content))

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send what :func:`message` made. Raises OSError where nobody listens any more."""
        with self._lock:
            for piece in pieces:
                self._writer.write(piece)
            self._writer.flush()

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """The next message; None where the other end is closed."""
        lengths = self._reader.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            return None
        sizes = LENGTHS.unpack(lengths)
        tree, numbers = (self._reader.read(size) for size in sizes)
        if len(tree) < sizes[0] or len(numbers) < sizes[1]:
            return None
        word, content = json.loads(tree)
        return word, _unpacked(content, load(numbers) if numbers else {})

    def close(self) -> None:
        """Tell the other end that nothing more comes."""
        try:
            self._writer.close()
        except OSError:  # it is gone, and what was still to be written with it
            return


def message(word: str, **content: Any) -> list[bytes]:
    """A word and what belongs to it, ready to be sent. Raises ValueError for what cannot travel."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps([word, _packed(content, tensors)]).encode()
    numbers = save(tensors) if tensors else b""
    return [LENGTHS.pack(len(tree), len(numbers)), tree, numbers]


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(each, tensors) for key, each in value.items()}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(each, tensors) for each in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"A {type(value).__name__} cannot be sent to another process; numbers, texts and tensors can.")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: _unpacked(each, tensors) for key, each in inside.items()}
    made = [_unpacked(each, tensors) for each in inside]
    return tuple(made) if kind == "tuple" else made
