"""The boundary between files of strangers and the pack: one sentence, whatever went wrong, and nothing waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from opensora.opensora_models.checkpoint import reading, settings

RAW = [
    KeyError("a"), TypeError("b"), IndexError("c"), ZeroDivisionError("d"), RecursionError("e"), OverflowError("f"),
    MemoryError(), RuntimeError("g\nlong text"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "h"), EOFError(),
    OSError(5, "Input/output error"), AssertionError(), AttributeError("i"), ValueError("x \ud800"),
    ValueError("y" * 9999),
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=lambda error: type(error).__name__)
def test_every_stumble_becomes_one_sentence(raw: Exception) -> None:
    with pytest.raises(ValueError) as error, reading.reading("my\nfile\udce4.bin"):
        raise raw
    text = str(error.value)
    assert type(error.value) is ValueError and error.value.__cause__ is raw
    assert text.startswith("'my\\x0afile\\udce4.bin' ") and text.endswith(".") and len(text) < 1000
    text.encode("utf-8")


def test_what_is_no_fault_of_a_file_passes() -> None:
    class Interrupted(Exception):
        pass

    for raw in (Interrupted(), torch.OutOfMemoryError("full"), KeyboardInterrupt()):
        with pytest.raises(type(raw)), reading.reading("file"):
            raise raw


def test_full_memory_is_called_that() -> None:
    full = "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    for raw in (MemoryError(), RuntimeError(full)):
        with (
            pytest.raises(ValueError, match="^'file' needs more memory than this machine has free"),
            reading.reading("file"),
        ):
            raise raw


def test_a_sentence_that_names_its_file_stays() -> None:
    for text in ("'file' is small.", "'part' of it is small."):
        with pytest.raises(ValueError, match=f"^{text}$"), reading.reading("file"):
            raise ValueError(text)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names")
def test_nothing_but_a_plain_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    for name, words in (
        ("pipe", "not a file but a pipe"),
        ("zero", "not a file but a device"),
        (".", "not a file but a folder"),
        ("lost", "does not exist"),
        ("loop", "cannot be read"),
        ("empty", "empty file"),
        ("n\x00ul", "does not exist"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            reading.expect_plain_file(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "NaN", '{"a": 1e999}', "-Infinity", "9" * 5000, b"\xff", '"\\']
)
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="^The settings in 'x' are not valid JSON .*; repair or remove them.$"):
        reading.parse_json(text, "'x'")


def test_settings_travel_as_a_tensor() -> None:
    known = {"groups": 4, "name": "ä", "list": [1, -1]}
    for dtype in (torch.uint8, torch.float32, torch.bfloat16, torch.float16):
        assert settings.from_tensor(settings.to_tensor(known).to(dtype), "'x'") == known
    for damaged in (torch.zeros(0), torch.tensor([0.5]), torch.tensor([300.0]), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match="of 'x' are damaged"):
            settings.from_tensor(damaged, "'x'")
    with pytest.raises(ValueError, match="not valid JSON"):
        settings.from_tensor(torch.tensor([200], dtype=torch.uint8), "'x'")


@pytest.mark.parametrize(("value", "near"), [(0, 1), (9, 8), (2.6, 3), (True, None), ("x", None), (None, None)])
def test_a_number_outside_its_limits_names_the_nearest(value: object, near: int | None) -> None:
    with pytest.raises(ValueError, match=f"nearest good value is {near}" if near else r"from 1 to 8\.$"):
        settings.whole_number(value, "it", 1, 8)
    if near is not None:
        assert settings.whole_number(near, "it", 1, 8) == near
