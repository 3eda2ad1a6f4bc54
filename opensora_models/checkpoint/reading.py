"""Files of strangers: only plain files are opened, and whatever is wrong with one becomes one sentence that names it.

A file may hold anything. Readers check what would cost time or memory; everything else that can go wrong inside them is
turned into a sentence at one boundary, :func:`reading`, with the original error kept as its cause.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from safetensors import SafetensorError

from ..messages.quoting import LONGEST_FILE_NAME, LONGEST_QUOTE, one_line, quoted, shortened

NO_MEMORY = "can't allocate memory"  # in what PyTorch says of the system's memory
LARGEST_JSON = 16_000_000
"""Bytes of a JSON file beside weights; the index of the largest released models has less than one million."""

# What a reader stumbles over in a damaged file. Anything else, such as a request to stop, is nobody's damage.
STUMBLES = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, SafetensorError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)

# A graphics card that is full or has failed; older PyTorch has no name for the latter.
NO_FAULT_OF_A_FILE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Whatever goes wrong inside is a fault of ``file`` (its name) and leaves as one ValueError sentence naming it.

    What a graphics card complains of is no fault of a file and passes.
    """
    try:
        yield
    except NO_FAULT_OF_A_FILE:
        raise
    except STUMBLES as error:
        raise ValueError(_sentence(file, error)) from error


def _sentence(file: str, error: Exception) -> str:
    name, reason = quoted(file, LONGEST_FILE_NAME), one_line(str(error) or type(error).__name__)
    if isinstance(error, OSError):
        return (
            f"{name} cannot be read ({one_line(error.strerror or reason)}); check the disk and who may read the file."
        )
    if isinstance(error, MemoryError) or NO_MEMORY in reason:
        return f"{name} needs more memory than this machine has free; close other programs or choose a smaller file."
    if type(error) is ValueError:
        # A sentence that begins with a name speaks of that file, or of one that belongs to this one.
        reason = reason if reason.endswith((".", "!", "?")) else f"{reason}."
        return reason if name in reason or reason.startswith("'") else f"{name} cannot be used: {reason}"
    return f"{name} is damaged or made by a program this pack does not know ({reason}); download or export it again."


def expect_plain_file(path: Path) -> int:
    """The size of the file in bytes. ValueError where it is missing, empty or no plain file: a pipe would block."""
    name = quoted(path.name, LONGEST_FILE_NAME)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: no file system knows such a name
        folder = one_line(str(path.parent), LONGEST_FILE_NAME)
        raise ValueError(f"{name} does not exist in '{folder}'; choose one of the listed files.") from error
    except OSError as error:
        _unreadable(path, error)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is not a file but a {_kind(status.st_mode)}; choose one of the listed files.")
    if status.st_size == 0:
        raise ValueError(f"{name} is an empty file (0 bytes); download it again.")
    return status.st_size


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise ValueError(_sentence(path.name, error)) from error


def _kind(mode: int) -> str:
    return "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"


def expect_memory(path: Path, needed: int) -> None:
    """ValueError where ``needed`` bytes of a file are more than all memory of the machine, such as a file of holes."""
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > there:
        raise ValueError(
            f"{quoted(path.name, LONGEST_FILE_NAME)} holds {needed / 2**30:,.0f} GB of tensors, and this machine has "
            f"{there / 2**30:,.0f} GB of memory; choose a smaller or quantised file."
        )


def is_folder(path: Path) -> bool:
    """True for a folder; what cannot be asked is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """True for a plain file; what cannot be asked is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> Any:
    """The content of a JSON file. ValueError naming the file for anything else."""
    size = expect_plain_file(path)
    with reading(path.name):
        if size > LARGEST_JSON:
            raise ValueError(
                f"{quoted(path.name)} has {size / 1e6:.0f} MB, too much for settings; remove or replace it."
            )
        return parse_json(path.read_bytes(), quoted(path.name, LONGEST_FILE_NAME))


def parse_json(text: str | bytes, where: str) -> Any:
    """Content of a JSON text with finite numbers. ValueError saying ``where`` it stands for anything else."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(str(error), LONGEST_QUOTE)
        raise ValueError(f"The settings in {where} are not valid JSON ({reason}); repair or remove them.") from error


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{shortened(text, 20)} is not a finite number")
