"""Frame and latent counting of the Open-Sora autoencoders: how many latents a clip has, and back.

Both video autoencoders work on groups of 17 frames that become 5 latent frames. In 1.2 the groups lie side by
side; in 1.3 neighbouring groups share one frame, so a clip of n groups has 16·n + 1 frames.
Source: the pipelines' ``get_latent_size`` and ``encode`` (opensora/models/vae/vae.py of release 1.2,
opensora/models/vae_v1_3/vae.py of release 1.3).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Version = Literal["1.2", "1.3"]
VERSIONS: tuple[Version, ...] = get_args(Version)

GROUP_FRAMES = 17
"""Frames one autoencoder group takes."""
GROUP_LATENTS = 5
"""Latent frames one full group gives."""
FRAMES_PER_LATENT = 4
"""Frames one latent frame stands for inside a group, its first latent excepted."""
SPATIAL_FACTOR = 8
"""Pixels per latent in height and in width."""
LATENT_CHANNELS: dict[Version, int] = {"1.2": 4, "1.3": 16}
"""Channels of a latent."""
GROUP_STEP: dict[Version, int] = {"1.2": GROUP_FRAMES, "1.3": GROUP_FRAMES - 1}
"""Frames each further group adds to a clip."""


def latent_frames(version: Version, frames: int) -> int:
    """Latent frames the encoder really gives for a clip of ``frames`` frames (ragged last groups included)."""
    if frames < 1:
        raise ValueError(f"a clip needs at least 1 frame, {frames} was given")
    if version == "1.2":
        groups, rest = divmod(frames, GROUP_FRAMES)
        return groups * GROUP_LATENTS + math.ceil(rest / FRAMES_PER_LATENT)
    groups, rest = divmod(frames - 1, GROUP_STEP["1.3"])
    if groups == 0:
        return math.ceil(frames / FRAMES_PER_LATENT)
    # A shared frame opens the ragged group, so it holds rest + 1 frames.
    return groups * GROUP_LATENTS + (math.ceil((rest + 1) / FRAMES_PER_LATENT) if rest else 0)


def decoded_frames(version: Version, latents: int) -> int:
    """Frames the decoder gives back for ``latents`` latent frames."""
    if latents < 1:
        raise ValueError(f"a clip needs at least 1 latent frame, {latents} was given")
    groups, rest = divmod(latents, GROUP_LATENTS)
    ragged = FRAMES_PER_LATENT * (rest - 1) + 1 if rest else 0
    if groups == 0:
        return ragged
    whole = GROUP_FRAMES + (groups - 1) * GROUP_STEP[version]
    shared = GROUP_FRAMES - GROUP_STEP[version]
    return whole + (ragged - shared if rest else 0)


def latent_size(version: Version, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, height and width of a clip given in frames and pixels, by the original's size function.

    1.2 rounds a partial 8-pixel cell down, 1.3 rounds it up and ignores a ragged last group.
    """
    if version == "1.2":
        return latent_frames(version, frames), height // SPATIAL_FACTOR, width // SPATIAL_FACTOR
    count = 1 if frames == 1 else (frames - 1) // GROUP_STEP["1.3"] * GROUP_LATENTS
    return count, math.ceil(height / SPATIAL_FACTOR), math.ceil(width / SPATIAL_FACTOR)


def frames_of_groups(latents: int) -> int:
    """Frames that ``latents`` latent frames stand for when they fill whole groups (1.2): 5 → 17, 10 → 34, …"""
    if latents % GROUP_LATENTS:
        good = max(1, round(latents / GROUP_LATENTS)) * GROUP_LATENTS
        raise ValueError(
            f"only whole groups of {GROUP_LATENTS} latent frames can be counted in frames, {latents} was given; "
            f"the nearest good value is {good}"
        )
    return latents // GROUP_LATENTS * GROUP_FRAMES
