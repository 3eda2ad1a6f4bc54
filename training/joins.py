"""How evenly a run of 1.2 fills the way between two given pictures: ``python -m training joins --flow RUN …``.

Each clip begins on one picture and has another where its second group of frames begins. Printed is the share of the way
between them that the shape has gone at every latent frame, the median over clips; the real one beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..opensora_models.releases.groups import GROUP_FRAMES, GROUP_LATENTS, GROUP_STEP
from . import options as option
from .captions import simple_caption
from .exported import add_code_option, code_in
from .flow import averaged
from .flow_batches import FROM_MIDDLE, Bucket
from .flow_recipes import RECIPES
from .flow_sampling import SamplingConfig, sample
from .latents import LatentCode
from .pictures import to_bytes
from .progress import log
from .reading import follow
from .scenes import COLOURS, SHAPES, Scene, place_scene
from .text_encoder import Tokenizer

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNT = 16
SEED = 0
CLIP = Bucket(GROUP_FRAMES + GROUP_STEP["1.2"], 64, 64, batch=COUNT, share=1.0)


def ways() -> list[Scene]:
    """Scenes that move in every direction for one group of frames and then stand still."""
    rng = np.random.default_rng(SEED)
    rows = [
        (list(COLOURS)[index % 6], SHAPES[index // len(WAYS) % len(SHAPES)], list(WAYS)[index % len(WAYS)])
        for index in range(COUNT)
    ]
    placed = [place_scene(rng, *row, frames=GROUP_FRAMES, config=FROM_MIDDLE) for row in rows]
    return [replace(scene, moves=GROUP_FRAMES) for scene in placed]


def shares_of_way(code: LatentCode, latents: Tensor, real: Tensor, scenes: Sequence[Scene]) -> np.ndarray:
    """[B, GROUP_LATENTS + 1] shares of the real way that the shapes of ``latents`` have gone, frame by frame."""
    rows = []
    for made, drawn, scene in zip(code.pictures(latents), code.pictures(real), scenes, strict=True):
        dx, dy = WAYS[scene.motion]
        place, wanted = (track.x * dx + track.y * dy for track in (follow(to_bytes(made)), follow(to_bytes(drawn))))
        rows.append((place - wanted[0])[: GROUP_LATENTS + 1] / (wanted[GROUP_LATENTS] - wanted[0]))
    return np.stack(rows)


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training joins", description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=option.run, required=True, help="run of the diffusion model of 1.2")
    add_code_option(parser)
    parser.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    parser.add_argument(
        "--phase", type=option.count, help="end of this phase, counted from 1; none: the last checkpoint"
    )
    parser.add_argument("--guidance", type=option.amount, nargs="+", default=[1.0, 2.0, 5.0])
    options = parser.parse_args(arguments)
    option.check_phase(parser, options, RECIPES["1.2"])
    pair = averaged(RECIPES["1.2"], options.flow, options.phase)
    code = code_in(options.code, "1.2")
    scenes, tokenizer = ways(), Tokenizer(options.tokenizer)
    real = code.clips(scenes, CLIP.frames, CLIP.height, CLIP.width)
    captions = [simple_caption(scene.colour, scene.shape, scene.motion, scene.background) for scene in scenes]
    log.info("real: %s", np.median(shares_of_way(code, real, real, scenes), axis=0).round(2).tolist())
    for guidance in options.guidance:
        config = SamplingConfig(guidance=guidance)
        made = sample(pair, tokenizer, captions, CLIP, config, given=real, indices=(0, GROUP_LATENTS))
        shares = np.nanmedian(shares_of_way(code, made, real, scenes), axis=0)
        log.info("guidance %.1f: %s", guidance, shares.round(2).tolist())
