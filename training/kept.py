"""What 2.0 keeps of a first frame, under words that agree, others and none: ``python -m training kept …``.

Drawn pictures of the four shapes are told with a way to move, and prompts name the same colour and shape, two others,
or are empty. What the frames from the fifth on show is read; neither pictures nor words are those of the quality test.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from . import options as option
from .captions import simple_caption
from .clip_l import PairTokenizer, tokenizer_of
from .evaluate import CLIP, ROWS_AT_ONCE, as_trained, decoded, told
from .exported import exported_autoencoder, exported_pair
from .flow import averaged
from .flow_batches import FROM_MIDDLE
from .flow_recipes import RECIPES
from .flow_sampling import SamplingConfig
from .latents import FRAMES_PER_LATENT, LatentCode
from .mmdit_pair import MMDiTPair
from .mmdit_sampling import sample_mmdit
from .pictures import to_bytes
from .progress import log
from .reading import Reading, read_clip
from .scenes import COLOURS, SHAPES, Scene, place_scene

WAYS = ("right", "left", "up", "down")
WORDS = ("right", "other", "none")
IMAGE_GUIDANCE = 3.0
PLACES_SEED = 3


@dataclass(frozen=True)
class Case:
    """A drawn clip, and the colour and shape that other words name."""

    scene: Scene
    colour: str
    shape: str

    def prompt(self, words: str) -> str:
        """By one of ``WORDS``, without the ending of 2.0's prompts."""
        if words == "none":
            return ""
        named = (self.scene.colour, self.scene.shape) if words == "right" else (self.colour, self.shape)
        return simple_caption(*named, self.scene.motion, self.scene.background)


def cases(count: int) -> list[Case]:
    """Shapes in turn, four of them for each way; colours, places and what other words name by chance."""
    rng, made = np.random.default_rng(PLACES_SEED), []
    for number in range(count):
        shape, motion = SHAPES[number % len(SHAPES)], WAYS[number // len(SHAPES) % len(WAYS)]
        colour = str(rng.choice(list(COLOURS)))
        places = np.random.default_rng(1000 * PLACES_SEED + number)
        scene = place_scene(places, colour, shape, motion, frames=CLIP.frames, config=FROM_MIDDLE)
        other_colour = str(rng.choice([name for name in COLOURS if name != colour]))
        made.append(Case(scene, other_colour, str(rng.choice([name for name in SHAPES if name != shape]))))
    return made


def drawn_on(
    pair: MMDiTPair, tokenizer: PairTokenizer, code: LatentCode, rows: Sequence[Case], words: str,
    config: SamplingConfig,
) -> list[Tensor]:  # fmt: skip
    """Normalised latents [B, C, l, h, w] of clips that go on from the first frames of ``rows``, batch by batch."""
    batches = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        clean = code.clips([case.scene for case in part], CLIP.frames, CLIP.height, CLIP.width)
        prompts = [case.prompt(words) for case in part]
        captions = prompts if words == "none" else as_trained(prompts, "2.0")
        own = replace(config, seed=config.seed + start)
        batches.append(sample_mmdit(pair, tokenizer, captions, CLIP, own, given=clean, indices=(0,)))
    return batches


def said(rows: Sequence[Case], readings: Sequence[Reading]) -> str:
    """The shares of clips that keep colour and shape, and which shapes became which."""
    pairs = list(zip(rows, readings, strict=True))
    right = {
        name: sum(getattr(reading, name) == getattr(case.scene, name) for case, reading in pairs) / len(pairs)
        for name in ("colour", "shape")
    }
    lost = Counter(
        f"{case.scene.shape} to {reading.shape}{', which the other words name' if reading.shape == case.shape else ''}"
        for case, reading in pairs
        if reading.shape != case.scene.shape
    )
    return f"{told(right, len(rows))}; lost: {'; '.join(f'{count} {name}' for name, count in lost.items()) or 'none'}"


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training kept", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=option.models, default=Path("demo/models"), help="folder of the exported files"
    )
    parser.add_argument("--flow", type=option.run, help="run of the diffusion model, instead of the exported one")
    parser.add_argument(
        "--phase", type=option.count, help="end of this phase of that run, counted from 1; none: the last checkpoint"
    )
    parser.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    parser.add_argument("--words", choices=WORDS, nargs="+", default=list(WORDS), help="what prompts name")
    parser.add_argument("--count", type=option.count, default=48, help="clips")
    options = parser.parse_args(arguments)
    recipe = RECIPES["2.0"]
    option.check_phase(parser, options, recipe)
    pair = (
        exported_pair(options.models, "2.0") if options.flow is None else averaged(recipe, options.flow, options.phase)
    )
    if not isinstance(pair, MMDiTPair):
        raise TypeError("Only 2.0 is told frames in this way.")
    model = exported_autoencoder(options.models, "2.0")
    code, tokenizer = LatentCode(model), tokenizer_of(recipe, options.tokenizer)
    rows, config = cases(options.count), SamplingConfig(image_guidance=IMAGE_GUIDANCE)
    for words in options.words:
        videos = [
            video
            for batch in drawn_on(pair, tokenizer, code, rows, words, config)
            for video in decoded(batch, model, code)
        ]
        readings = [read_clip(to_bytes(video)[FRAMES_PER_LATENT:]) for video in videos]
        log.info("%s words, %d clips: %s", words, len(rows), said(rows, readings))
