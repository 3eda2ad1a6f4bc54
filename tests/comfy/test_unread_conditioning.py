"""What nodes for other models write into a conditioning, and Open-Sora does not read, is told in whatever sampler."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.native import conditioning, empty, load, sample

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

PICTURE = torch.zeros(1, 16, 1, 8, 10)
WRITTEN: dict[str, dict[str, Any]] = {
    "the start of a video": {"concat_latent_image": PICTURE, "concat_mask": PICTURE[:, :4]},
    "latents to look at": {"reference_latents": [PICTURE, PICTURE]},
    "CLIP Vision": {"clip_vision_output": SimpleNamespace(image_embeds=torch.zeros(1, 8))},
    "unCLIP": {"unclip_conditioning": [{"clip_vision_output": SimpleNamespace(image_embeds=torch.zeros(1, 8))}]},
    "frames to control": {"vace_frames": [PICTURE], "vace_strength": [1.0]},
    "of a pack nobody knows": {"somebodys_pictures": {"first": torch.zeros(1, 64, 64, 3)}},
}
READ: dict[str, Any] = {
    "strength": 1.0, "mask": torch.ones(1, 8, 10), "mask_strength": 1.0, "frame_rate": 24, "lyrics": [1, 2],
    "conditioning_of_text": torch.zeros(1, 7, 64), "opensora_given_drop": False,
}  # fmt: skip
"""What samplers and we read, and what holds no picture."""


def told(model: Any, version: str, caplog: pytest.LogCaptureFixture, **values: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="opensora"):
        sample(model, empty(version), positive=conditioning(opensora_text=version, **values), steps=1)
    return [line for line in caplog.messages if "wrote pictures" in line or "guidance written" in line]


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_pictures_and_guidance_of_other_models_are_told(
    comfy: Path, tiny_models: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_models, version)
    assert told(model, version, caplog, **READ) == []
    for values in WRITTEN.values():
        (sentence,) = set(told(model, version, caplog, **values))
        assert f"Open-Sora {version} does not read; give pictures with Open-Sora Reference." in sentence
        assert next(iter(values)) in sentence and "vace_strength" not in sentence
    (sentence,) = set(told(model, version, caplog, guidance=3.5))
    assert sentence == f"The guidance written into the prompt (Flux) is not read by Open-Sora {version}."


def test_one_clip_is_made_of_the_first_text_of_a_long_videos_prompt(
    comfy: Path, tiny_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.opensora_models.native.sampling.clips import ClipRun, sample_clip
    from opensora.opensora_models.native.sampling.long_video import _texts_of

    model, latent, run = load(tiny_models, "1.3"), {"samples": empty("1.3")}, ClipRun(steps=2, seed=3, cfg=4.0)
    first, second = conditioning(opensora_segment=0), conditioning(seed=9, opensora_segment=2)
    with caplog.at_level(logging.INFO, logger="opensora"), torch.inference_mode():
        both = sample_clip(model, [*first, *second], conditioning(5, seed=2), latent, run)
        assert "changes at segment 2 of a long video" in caplog.text and "made of the first text alone" in caplog.text
        caplog.clear()
        alone = sample_clip(model, conditioning(), conditioning(5, seed=2), latent, run)
        later = sample_clip(model, _texts_of([*first, *second], 2), conditioning(5, seed=2), latent, run)
        assert "long video" not in caplog.text
        sample(model, empty("1.3"), positive=[*first, *second], steps=1)
        assert "this sampler takes all its texts at once" in caplog.text
    assert torch.equal(both["samples"], alone["samples"])
    assert not torch.equal(both["samples"], later["samples"])
