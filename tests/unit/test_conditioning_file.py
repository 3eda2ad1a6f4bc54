"""Saved conditioning: exact, versioned, never half written, never executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opensora.opensora_models.text import conditioning_file as files


def example() -> dict[str, list[list[object]]]:
    null = torch.randn(7, 4)
    return {
        "positive": [
            [torch.randn(1, 3, 4), {"pooled_output": None, "opensora_segment": 0}],
            [torch.randn(1, 5, 4).half(), {"pooled_output": torch.randn(1, 2), "frame_rate": 24.0, "frames": [0, 3]}],
        ],
        "negative": [[null[None, :3], {"pooled_output": None}], [null[None, :5], {"pooled_output": None}]],
    }


def test_everything_comes_back(tmp_path: Path) -> None:
    saved, path = example(), tmp_path / "new" / "a.safetensors"
    files.save_conditioning(path, saved, "my note")
    loaded = files.load_conditioning(path)
    assert files.note_of(path) == "my note" and list(loaded) == ["positive", "negative"]
    for name, entries in saved.items():
        for (tensor, extra), (tensor_after, extra_after) in zip(entries, loaded[name], strict=True):
            assert tensor.dtype == tensor_after.dtype and torch.equal(tensor, tensor_after)
            assert set(extra) == set(extra_after)
            assert all(torch.is_tensor(v) or extra_after[k] == v for k, v in extra.items())
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_ten_entries_do_not_mix(tmp_path: Path) -> None:
    saved = {"positive": [[torch.full((1, 1, 2), float(n)), {"extra": torch.tensor([n])}] for n in range(12)]}
    files.save_conditioning(tmp_path / "a", saved)
    loaded = files.load_conditioning(tmp_path / "a")["positive"]
    assert [float(tensor[0, 0, 0]) for tensor, _ in loaded] == list(range(12))
    assert [int(extra["extra"]) for _, extra in loaded] == list(range(12))


def test_live_objects_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="carries 'control' .object., which cannot be stored"):
        files.save_conditioning(tmp_path / "a", {"positive": [[torch.zeros(1, 1, 2), {"control": object()}]]})
    with pytest.raises(ValueError, match="negative conditioning is empty"):
        files.save_conditioning(tmp_path / "a", {"negative": []})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.save_conditioning(path, example())
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        files.save_conditioning(path, example())
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "is not a conditioning saved by"),
        ("{", "damaged description"),
        (json.dumps({"entries": {}}), "damaged description"),
        (json.dumps({"format": files.FORMAT + 1}), "newer version of this pack"),
        (json.dumps({"format": 1, "entries": {"positive": [{}]}}), "does not fit its tensors"),
        (json.dumps({"format": 1}), "does not fit its tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, description: str | None, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={files.FORMAT_KEY: description} if description else {})
    with pytest.raises(ValueError, match=message):
        files.load_conditioning(path)


def with_pooled() -> dict[str, list[list[object]]]:
    pooled = {"pooled_output": torch.randn(1, 16), "opensora_text": "2.0"}
    return {name: [[torch.randn(1, 512, 4), dict(pooled)]] for name in ("positive", "negative")}


def test_the_pooled_state_comes_back(tmp_path: Path) -> None:
    saved = with_pooled()
    files.save_conditioning(tmp_path / "a", saved)
    for name, ((_, extra),) in files.load_conditioning(tmp_path / "a").items():
        assert torch.equal(extra["pooled_output"], saved[name][0][1]["pooled_output"])
        assert extra["opensora_text"] == "2.0" and len(extra) == 2


@pytest.mark.parametrize(
    ("tensors", "values", "words"),
    [
        ({"pooled_output": torch.zeros(16)}, {}, "does not fit its tensors"),
        ({"pooled_output": torch.zeros(1, 0)}, {}, "does not fit its tensors"),
        ({"pooled_output": torch.zeros(1, 16).int()}, {}, "does not fit its tensors"),
        ({}, {"opensora_text": "2.0"}, "lacks the state of CLIP-L that Open-Sora '2.0' reads"),
        ({}, {"pooled_output": [1.0]}, "entry 'pooled_output' is"),
        ({"pooled_output": torch.zeros(1, 16)}, {"opensora_text": 2}, "entry 'opensora_text' is 2"),
    ],
)
def test_a_damaged_pooled_state_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], values: dict[str, object], words: str
) -> None:
    description = {"format": 1, "entries": {"positive": [values]}, "note": ""}
    held = {"positive.0.text": torch.zeros(1, 512, 4)} | {f"positive.0.{name}": each for name, each in tensors.items()}
    save_file(held, tmp_path / "a", metadata={files.FORMAT_KEY: json.dumps(description)})
    with pytest.raises(ValueError, match=f"'a' .*{words}"):
        files.load_conditioning(tmp_path / "a")


def test_files_from_before_the_pooled_state_load(tmp_path: Path) -> None:
    description = {"format": 1, "entries": {"positive": [{"pooled_output": None}], "negative": [{}]}, "note": ""}
    held = {f"{name}.0.text": torch.ones(1, 3, 4) for name in ("positive", "negative")}
    save_file(held, tmp_path / "a", metadata={files.FORMAT_KEY: json.dumps(description)})
    loaded = files.load_conditioning(tmp_path / "a", ("positive", "negative"))
    assert [extra for entries in loaded.values() for _, extra in entries] == [{"pooled_output": None}, {}]


def test_pickles_and_garbage_are_refused(tmp_path: Path) -> None:
    torch.save({"positive": object}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(ValueError, match=name):
            files.load_conditioning(tmp_path / name)
