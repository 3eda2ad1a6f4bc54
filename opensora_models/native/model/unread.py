"""Says what a conditioning holds that is not read as it was meant: pictures, Flux's guidance, texts of later segments.

Core's nodes that start a video from a picture (for Wan, HunyuanVideo, Flux Kontext …) write it beside the text, under
names of their own. No list of names would stay complete, so pictures are known by what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...releases.release import Release
from ...text.padding import ENCODED_FOR
from ...text.segments import SEGMENT_KEY

OWN = "opensora_"
"""How names of ours begin."""

SAMPLERS = ("noise", "latent_image", "denoise_mask", "mask", "cross_attn", "pooled_output", "control", "hooks",
            "model_conds")  # fmt: skip
"""Names that ComfyUI's samplers use themselves, for any model."""

PICTURE_AXES = 4
"""Pictures and latents have four axes or five; states of a text have three at most."""

CLIP_VISION = "image_embeds"
"""What CLIP Vision makes of a picture has this attribute."""

GUIDANCE = "guidance"


def unread(values: Mapping[str, Any], release: Release) -> list[str]:
    """Sentences on one entry of a conditioning, as a MODEL's ``extra_conds`` gets it."""
    said = []
    names = [name for name, value in values.items() if not _is_read(name) and _holds_pictures(value)]
    if names:
        said.append(
            f"A node for other models wrote pictures into the prompt ({', '.join(sorted(names))}), which "
            f"{release.title} does not read; give pictures with Open-Sora Reference."
        )
    if values.get(SEGMENT_KEY):
        said.append(
            f"The prompt changes at segment {values[SEGMENT_KEY]} of a long video; this sampler takes all its texts at "
            "once. Open-Sora Sampler takes the first, Open-Sora Long Video each in its segment."
        )
    # Of a padded text that other nodes encoded, it is said along with what else is different.
    if values.get(GUIDANCE) is not None and (ENCODED_FOR in values or not release.text.padded):
        said.append(f"The guidance written into the prompt (Flux) is not read by {release.title}.")
    return said


def _is_read(name: str) -> bool:
    return name in SAMPLERS or name.startswith(OWN)


def _holds_pictures(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim >= PICTURE_AXES
    if isinstance(value, Mapping):
        return any(_holds_pictures(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_pictures(each) for each in value)
    return hasattr(value, CLIP_VISION)
