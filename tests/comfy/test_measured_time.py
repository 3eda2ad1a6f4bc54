"""After a run the size node tells how long the next one takes, by the speed that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.native import conditioning, load

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.comfy]

RUN = {
    "steps": 1, "cfg": 1.0, "seed": 1, "denoise": 1.0, "guidance": "automatic", "image_cfg": 5.0, "renoise_given": True,
}  # fmt: skip
SHAPE = {"version": "1.2", "resolution": "144p", "aspect_ratio": "1:1 (square)", "length": "2s", "custom_frames": 17}


@pytest.fixture
def user(comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    yield tmp_path / "__opensora" / "speeds.json"


def told(model: Any) -> str:
    from opensora.nodes.size import Size

    return Size.execute(**SHAPE, model=model).result[4]


def test_gigabytes_at_once_and_minutes_after_a_run(user: Path, tiny_models: Path) -> None:
    from opensora.nodes.sampling import Sampler
    from opensora.opensora_models.storage.speeds import keep_speed, speeds_in

    model = load(tiny_models, "1.2")
    assert "GB with this MODEL's" in told(model) and "steps take" not in told(model)
    assert "GB with bf16 weights" in told(None), "also for 1.2, whose row is counted here"
    latent = {"samples": torch.zeros(1, 4, 5, 4, 4)}
    with torch.inference_mode():
        Sampler.execute(model=model, positive=conditioning(), negative=conditioning(5), latent=latent, **RUN)
    assert "30 steps take" in told(model) and "minute" in told(model)
    ((name, rate),) = speeds_in(user).items()
    assert rate > 0 and "1.2, " in name
    keep_speed(user, name, rate / 1e6)
    assert "hours" in told(model) and "steps take" not in told(None), "another network has another speed"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "b", "c": -1, "d": NaN, "e": true, "f": 2.5}', "[" * 10_000])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    from opensora.opensora_models.storage.speeds import keep_speed, speeds_in

    file = tmp_path / "speeds.json"
    file.write_text(text, encoding="utf-8")
    assert speeds_in(file) in ({}, {"f": 2.5})
    keep_speed(file, "g", 7.0)
    assert speeds_in(file)["g"] == 7.0
