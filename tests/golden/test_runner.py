"""The runner of recorded cases: nothing it is given is skipped without a word, and no file name matters."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from golden import families
from golden.runner import Result, case_files, load_case, run_file

CASES = Path(__file__).parent / "cases"

families.register_all()


def results(path: Path) -> list[Result]:
    return list(run_file(path))


def written(folder: Path, info: Any, name: str = "case.safetensors", **tensors: torch.Tensor) -> Path:
    text = info if isinstance(info, str) else json.dumps(info)
    save_file(tensors or {"out.y": torch.zeros(1)}, folder / name, metadata={"case": text})
    return folder / name


TOLERANCES = {"atol": 1e-5, "rtol": 0.0}
BROKEN: dict[str, tuple[Any, str]] = {
    "text": ("{", "JSONDecodeError"),
    "list": ([1], "not a dictionary"),
    "class": ({"family": "vae", "root_module": "Unet"}, "no module registered for Unet of family 'vae'"),
    "kind": ({"family": "stdit3-v1.2", "kind": "loss"}, "no module registered for loss"),
    "nothing": ({"family": "vae"}, "no module registered for such a case"),
    "config": (
        {"family": "vae", "version": "v1.2", "root_module": "VideoAutoencoderPipeline"},
        "has no 'vae_temporal'",
    ),
    "input": ({"family": "vae", "version": "v1.2", "root_module": "LPIPS", "tolerances": TOLERANCES}, "no in.a"),
    "output": (
        {"family": "vae", "version": "v1.2", "root_module": "functions", "tolerances": TOLERANCES},
        "nothing computed for ['y']",
    ),
    "setting": (
        {"family": "vae", "version": "v1.3", "root_module": "Downsample2D", "config": {"with_conv": False}},
        "with_conv False is not implemented",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_run_fails_with_the_reason(tmp_path: Path, name: str) -> None:
    info, reason = BROKEN[name]
    (result,) = results(written(tmp_path, info))
    assert not result.passed and result.worst is not None
    assert reason in result.detail


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("cut.safetensors", struct.pack("<Q", 2**40) + b"{}"),
        ("plain.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("empty.json", b""),
        ("latin.json", b'{"a": "\xe9"}'),
        ("utils.json", b'{"v1.2": {}}'),
        ("timesteps.json", b'{"v1.2": [{"height": 8}]}'),
        ("timesteps.json", b'{"v9": [{"height": 8}]}'),
    ],
)
def test_a_broken_file_fails_with_the_reason(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = results(tmp_path / name)
    assert found and all(result.worst is not None and not result.passed and result.detail for result in found)


@pytest.mark.parametrize("family", ["vae-9", None, 3])
def test_an_unknown_family_is_named(tmp_path: Path, family: Any) -> None:
    (result,) = results(written(tmp_path, {"family": family}))
    assert result.worst is None
    assert result.detail == f"no module registered for family {str(family)!r}"


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text('[{"in": 1}]', "utf-8")
    (result,) = results(tmp_path / "prices.json")
    assert result.worst is None and "prices" in result.detail


def _one_of_each() -> list[Path]:
    """The smallest recorded case of every class, kind and release."""
    smallest: dict[tuple[Any, ...], Path] = {}
    for path in sorted(case_files(CASES), key=lambda path: path.stat().st_size):
        if path.suffix == ".safetensors":
            case = load_case(path)
            smallest.setdefault((case.family, case.kind, case.root, case.info.get("version")), path)
    return list(smallest.values())


@pytest.mark.parametrize("path", _one_of_each(), ids=lambda path: path.stem)
def test_a_case_runs_whatever_its_file_is_called(tmp_path: Path, path: Path) -> None:
    case = load_case(path)
    info = {key: value for key, value in case.info.items() if key not in ("name", "notes", "made_with")}
    if case.root == "DiscriminatorLoss":
        info["notes"] = case.info["notes"]  # the only place where LeCam's means are recorded
    (before,), (result,) = results(path), results(written(tmp_path, info, "x1.safetensors", **case.tensors))
    assert (result.worst is None) == (before.worst is None)
    assert result.passed or result.worst is None


def test_a_table_is_known_by_the_beginning_of_its_name_or_by_its_kind(tmp_path: Path) -> None:
    text = (CASES / "vae" / "latent_size.json").read_text("utf-8")
    for name in ("latent_size_other.json", "sizes.json"):
        (tmp_path / name).write_text(text, "utf-8")
        found = results(tmp_path / name)
        assert len(found) == 2 and all(result.passed for result in found)


def test_a_wrong_number_is_noticed(tmp_path: Path) -> None:
    """Every output counts, also a small one beside large ones."""
    case = load_case(CASES / "vae" / "train12_elementary_losses.safetensors")
    for name, value in case.expected.items():
        changed = {**case.tensors, f"out.{name}": value + 0.01 * value.abs().max().clamp_min(1.0)}
        (result,) = results(written(tmp_path, case.info, **changed))
        assert not result.passed and f"out.{name}" in result.detail
