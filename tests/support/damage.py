"""What can lie in the place of a stored piece instead of the piece."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

Damage = Callable[[Path, Path], None]
"""``(place of a good file, a folder outside the store)``: does the damage."""


def _free(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    def damage(place: Path, outside: Path) -> None:
        place.write_bytes(change(place.read_bytes()))

    return damage


def _flipped(data: bytes) -> bytes:
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"


def _tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Changes tensors and leaves a good file; files that hold none are emptied."""

    def damage(place: Path, outside: Path) -> None:
        try:
            tensors = load_file(place)
        except SafetensorError:
            place.write_bytes(b"")
            return
        save_file({name: change(tensor) for name, tensor in tensors.items()}, place)

    return damage


def _swapped(place: Path, outside: Path) -> None:
    other = next(path for path in sorted(place.parent.iterdir()) if path.suffix == place.suffix and path != place)
    other.rename(place.with_name("between"))
    place.rename(other)
    place.with_name("between").rename(place)


def _copied(place: Path, outside: Path) -> None:
    other = next(path for path in sorted(place.parent.iterdir()) if path.suffix == place.suffix and path != place)
    shutil.copy(other, place)


def _folder(place: Path, outside: Path) -> None:
    _free(place)
    place.mkdir()


def _full_folder(place: Path, outside: Path) -> None:
    _folder(place, outside)
    (place / "inside").mkdir()
    (place / "inside" / "file").write_bytes(b"x")


def _pipe(place: Path, outside: Path) -> None:
    _free(place)
    os.mkfifo(place)


def _socket(place: Path, outside: Path) -> None:
    _free(place)
    here = os.getcwd()
    os.chdir(place.parent)  # a socket's path may have 107 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place.name)
    finally:
        os.chdir(here)


def _dangling(place: Path, outside: Path) -> None:
    _free(place)
    place.symlink_to(outside / "nothing")


def _link_away(place: Path, outside: Path) -> None:
    shutil.move(place, outside / place.name)
    place.symlink_to(outside / place.name)


def _link_to_endless(place: Path, outside: Path) -> None:
    _free(place)
    place.symlink_to("/dev/zero")


def _link_to_itself(place: Path, outside: Path) -> None:
    _free(place)
    place.symlink_to(place)


def _unreadable(place: Path, outside: Path) -> None:
    place.write_bytes(b"")
    place.chmod(0)


def _gone(place: Path, outside: Path) -> None:
    _free(place)


ANYWHERE: dict[str, Damage] = {
    "gone": _gone,
    "folder": _folder,
    "full folder": _full_folder,
    "pipe": _pipe,
    "socket": _socket,
    "dangling link": _dangling,
    "link away": _link_away,
    "link to an endless device": _link_to_endless,
    "link to itself": _link_to_itself,
}
"""What can take the place of a file or a folder."""

IN_FILES: dict[str, Damage] = {
    "empty": _bytes(lambda data: b""),
    "one byte": _bytes(lambda data: b"x"),
    "half": _bytes(lambda data: data[: len(data) // 2]),
    "last byte missing": _bytes(lambda data: data[:-1]),
    "longer": _bytes(lambda data: data + bytes(100)),
    "one bit": _bytes(_flipped),
    "zeros": _bytes(lambda data: bytes(len(data))),
    "garbage": _bytes(lambda data: os.urandom(len(data))),
    "nested": _bytes(lambda data: b"[" * 60_000),
    "other shape": _tensors(lambda tensor: tensor[:, :, :-1].contiguous()),
    "other size": _tensors(lambda tensor: tensor.repeat(1, 1, 1, 2, 2)),
    "other dtype": _tensors(lambda tensor: tensor.half()),
    "not a number": _tensors(lambda tensor: tensor * float("nan")),
    "one infinite value": _tensors(
        lambda tensor: tensor.flatten().index_fill(0, torch.tensor([3]), float("inf")).view_as(tensor)
    ),
    "other values": _tensors(lambda tensor: tensor + 1),
    "swapped": _swapped,
    "copy of another": _copied,
    "unreadable": _unreadable,
    **ANYWHERE,
}
"""What can happen to a file of a store."""
