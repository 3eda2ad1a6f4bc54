"""The releases this pack knows, and how to find out which one is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..caching.published import PUBLISHED
from ..mmdit.config import RELEASED, RELEASED_HIGH_COMPRESSION, MMDiTConfig
from ..text.padding import T5_LENGTH
from ..text.tokens import MAX_TOKENS
from .arithmetic import mmdit_bytes, mmdit_operations, released_stdit3_operations
from .flow_shift import flow_shift
from .groups import GROUP_FRAMES, GROUP_LATENTS, GROUP_STEP, LATENT_CHANNELS, SPATIAL_FACTOR, Version
from .guidance import PRESETS
from .lengths import Causal, Grouped, Lengths, Strided
from .printed_sizes import PRESET_LENGTHS
from .release import GivenRules, GuidanceRules, Latents, Release, TextRules, Times
from .sizes import Computed, Printed
from .time_shift import shift_for

STEPS_V1, STEPS_V2 = 30, 50
WEIGHTS_V1, WEIGHTS_V2 = 1.13e9, 11.89e9
"""Numbers in a diffusion model."""
TIME_OPTIONS = ("transform_scale", "scale_temporal", "dtype", "discrete")

TEXT_V1 = TextRules(MAX_TOKENS, padded=False, pooled=False, cleaned=True, learned_negative=True)
TEXT_V2 = TextRules(T5_LENGTH, padded=True, pooled=True, cleaned=False, learned_negative=False, suffixes=True, motion=4)

PICTURE_V2, CLIP_V2 = PRESETS["2.0 given pictures"], PRESETS["2.0 given clip"]
GUIDANCE_V2 = GuidanceRules({"text": PRESETS["2.0 text to video"], "picture": PICTURE_V2, "clip": CLIP_V2})


def _version_1(
    version: Version,
    rule: str,
    guidance: GuidanceRules,
    given: GivenRules,
    presets: Mapping[str, int],
    step_tables: Mapping[str, str],
) -> Release:
    step, patch = GROUP_STEP[version], 2

    def shift(frames: int, height: int, width: int, **options: Any) -> float:
        return shift_for(version, height, width, frames, **options)

    return Release(
        id=version,
        title=f"Open-Sora {version}",
        network="stdit3",
        autoencoder=version,
        latents=Latents(
            channels=LATENT_CHANNELS[version],
            space=SPATIAL_FACTOR,
            patch=patch,
            lengths=Lengths(Grouped(version), GROUP_FRAMES, step, rule, presets=presets),
            cell=SPATIAL_FACTOR,
            cut=version == "1.2",
            wordless=True,
        ),
        sizes=Printed(version),
        times=Times(STEPS_V1, shift, frozenset(TIME_OPTIONS)),
        guidance=guidance,
        given=given,
        text=TEXT_V1,
        operations=released_stdit3_operations(version),
        parameters="1.1 B",
        weights=WEIGHTS_V1,
        step_tables=step_tables,
    )


def _version_2(
    id: str, autoencoder: str, config: MMDiTConfig, space: int, lengths: Lengths, file: str, takes: tuple[int, ...]
) -> Release:
    cell = space * config.patch_size
    latents = Latents(config.channels, space, config.patch_size, lengths, cell)

    def shift(frames: int, height: int, width: int) -> float:
        return flow_shift(latents.tokens_per_frame(height, width), lengths.counting.latents(frames))

    return Release(
        id=id,
        title=f"Open-Sora {id}",
        network="mmdit",
        autoencoder=autoencoder,
        latents=latents,
        sizes=Computed(cell),
        times=Times(STEPS_V2, shift),
        guidance=GUIDANCE_V2,
        given=GivenRules("input", takes, written_back=True, original_fit=True),
        text=TEXT_V2,
        operations=mmdit_operations(config),
        parameters="11.9 B",
        weights=WEIGHTS_V2,
        row_bytes=mmdit_bytes(config),
        files=(file,),
        # The Flux stage makes pictures with its own autoencoder, whatever the video's is.
        image_stage=Computed(SPATIAL_FACTOR * 2, adjusted=True),
    )


RELEASES: dict[str, Release] = {
    release.id: release
    for release in (
        _version_1(
            "1.2",
            "17·n",
            GuidanceRules(dict.fromkeys(("text", "picture", "clip"), PRESETS["1.2"])),
            GivenRules("mask", (GROUP_FRAMES,), anywhere=True, frame_mask=True, align=GROUP_LATENTS),
            PRESET_LENGTHS,
            PUBLISHED,
        ),
        _version_1(
            "1.3",
            "16·n + 1",
            GuidanceRules(
                {
                    "text": PRESETS["1.3 text to video"],
                    "picture": PRESETS["1.3 given frames"],
                    "clip": PRESETS["1.3 given frames"],
                },
                fade_reaches_end=True,
            ),
            GivenRules(
                "input", (GROUP_FRAMES,), empty_row_sees_mask=True, anywhere=True, frame_mask=True, renoised=True
            ),
            {},
            {},
        ),
        _version_2(
            "2.0",
            "hunyuan",
            RELEASED,
            8,
            Lengths(Causal(), 5, 4, "4·n + 1", longest=129, presets={"5s": 129}),
            "Open_Sora_v2.safetensors",
            (33, 65),
        ),
        _version_2(
            "2.0 high compression",
            "dc-ae",
            RELEASED_HIGH_COMPRESSION,
            32,
            # Four frames become one latent, which comes back as one frame.
            Lengths(Strided(), 8, 4, "4·n", longest=128, presets={"5s": 128}, tile=(8, 6)),
            "Open_Sora_v2_Video_DC_AE.safetensors",
            (32, 64),
        ),
    )
}
"""Every release by its id."""


IMAGE_STAGE = "2.0 image stage"
"""What menus call the pictures that the original makes with Flux before a video of 2.0."""
STAGE_OF = "2.0"
"""The release whose rules hold for it, high compression or not."""


def release_named(id: str) -> Release:
    """The release of this id. Raises ValueError for another word."""
    if id not in RELEASES:
        raise ValueError(f"There is no Open-Sora {id!r}; known are {', '.join(RELEASES)}.")
    return RELEASES[id]


def releases_with(channels: int) -> tuple[Release, ...]:
    """All releases whose latents have so many channels: 16 are 1.3's and 2.0's (and Flux's)."""
    return tuple(release for release in RELEASES.values() if release.latents.channels == channels)


def said_release(word: object, channels: int) -> Release | None:
    """The release that a LATENT of so many channels says it is for; None where it says none, or one that cannot be."""
    release = RELEASES.get(word) if isinstance(word, str) else None
    return release if release is not None and release.latents.channels == channels else None


def believed_release(
    *, model: object = None, vae: object = None, latent: object = None, channels: int | None = None
) -> Release | None:
    """The release that is meant, by what is known, the surest first: MODEL, VAE, the LATENT's own word, its channels.

    A word that is no release's is passed over, and so is a LATENT's where its channels say that it cannot be (another
    program may have copied it along). None where nothing decides.
    """
    possible = None if channels is None else releases_with(channels)
    for word in (model, vae):
        if isinstance(word, str) and word in RELEASES:
            return RELEASES[word]
    if isinstance(latent, str) and latent in RELEASES and (possible is None or RELEASES[latent] in possible):
        return RELEASES[latent]
    return possible[0] if possible is not None and len(possible) == 1 else None
