"""How round and sharp the shapes of a model are, beside drawings: ``python -m training outlines …``.

Three kinds of clips for the same words, 17 frames of 64×64 pixels: drawn ones, drawn ones sent through the autoencoder,
and generated ones. Of each are printed the mean compactness and the mean width of the edge (:mod:`.contours`), with the
95 % interval over clips, from all frames that show a large enough shape wholly inside, whatever shape that is. Ratios
are to the drawings sent through the autoencoder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import options as option
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import Autoencoder, averaged_autoencoder
from .clip_l import tokenizer_of
from .contours import outline
from .evaluate import CLIP, Words, as_trained, decoded, generated, prompts_for, shares
from .exported import exported_autoencoder, exported_pair
from .flow import averaged
from .flow_recipes import RECIPES
from .flow_sampling import SamplingConfig
from .latents import LatentCode, carrying_frames
from .pictures import contact_sheet, to_bytes
from .progress import log
from .reading import read_clip
from .rendering import render
from .scenes import BACKGROUNDS, SHAPES, Scene, SceneConfig, combinations, held_out, place_scene

CONFIDENT = 1.96  # standard errors on either side: 95 %
NOISE_SEED = 1  # of what --noise adds


@dataclass(frozen=True)
class Measured:
    """Compactness and edge width [clips, frames] of clips; NaN where a frame is not measured."""

    compactness: np.ndarray
    edge: np.ndarray

    def said(self, beside: Measured | None = None) -> str:
        """One line; ``beside``: what both means are divided by."""
        compactness, edge = mean_and_interval(self.compactness), mean_and_interval(self.edge)
        seen = self.compactness[np.isfinite(self.compactness)]
        tenth = float(np.quantile(seen, 0.1)) if seen.size else float("nan")
        line = (
            f"compactness {compactness[0]:.3f} ± {compactness[1]:.3f}, a tenth of the frames below {tenth:.3f}, "
            f"edge {edge[0]:.2f} ± {edge[1]:.2f} px, {seen.size} frames"
        )
        if beside is None:
            return line
        ratios = [
            own[0] / mean_and_interval(other)[0]
            for own, other in ((compactness, beside.compactness), (edge, beside.edge))
        ]
        return f"{line}; ratios {ratios[0]:.3f} and {ratios[1]:.2f}"

    def at(self, numbers: Sequence[int]) -> Measured:
        """Of some frames only."""
        return Measured(self.compactness[:, list(numbers)], self.edge[:, list(numbers)])


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of [clips, frames] over clips of their means over frames, and half the width of its 95 % interval. NaN is
    left out, and clips of nothing else."""
    clips = [float(row[np.isfinite(row)].mean()) for row in values if np.isfinite(row).any()]
    if len(clips) < 2:
        return (clips[0] if clips else float("nan")), float("nan")
    return float(np.mean(clips)), CONFIDENT * float(np.std(clips, ddof=1)) / len(clips) ** 0.5


def measured(videos: Sequence[Tensor]) -> Measured:
    """Of clips [3, T, H, W] in [-1, 1]."""
    rows = [[outline(frame) for frame in to_bytes(video)] for video in videos]
    values = [[(np.nan, np.nan) if one is None else (one.compactness, one.edge) for one in row] for row in rows]
    return Measured(*np.moveaxis(np.array(values), -1, 0))


def rows_of(shape: str, only_held_out: bool) -> list[Words]:
    """Every combination of a shape ("all": of any), or those of them that training never shows."""
    return [row for row in (held_out() if only_held_out else combinations()) if shape in ("all", row[1])]


def drawn_scenes(rows: Sequence[Words], config: SceneConfig, seed: int) -> list[Scene]:
    """A scene for each row, over the same backgrounds as its prompt, placed as text to video is trained."""
    rng, backgrounds = np.random.default_rng(seed), list(BACKGROUNDS)
    return [
        replace(
            place_scene(rng, *row, frames=CLIP.frames, config=config), background=backgrounds[index % len(backgrounds)]
        )
        for index, row in enumerate(rows)
    ]  # fmt: skip


def through(model: Autoencoder, code: LatentCode, scenes: Sequence[Scene], noise: float = 0.0) -> list[Tensor]:
    """Drawings as the autoencoder gives them back, with noise of this deviation on their latents, which have 1."""
    latents = code.clips(scenes, CLIP.frames, CLIP.height, CLIP.width)
    added = torch.randn(latents.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    return list(decoded(latents + noise * added, model, code))


def read_right(rows: Sequence[Words], videos: Sequence[Tensor]) -> str:
    """How many of the clips show the words of their rows; there may be several rounds of rows."""
    readings = [read_clip(to_bytes(video)) for video in videos]
    asked = list(rows) * (len(videos) // len(rows))
    return ", ".join(f"{name} {share:.1%}" for name, share in shares(asked, readings).items())


def parser() -> argparse.ArgumentParser:
    """Of this module's command line."""
    made = argparse.ArgumentParser(prog="python -m training outlines", description=__doc__.splitlines()[0])
    made.add_argument("--release", choices=sorted(RECIPES), default="1.3", help="which Open-Sora")
    made.add_argument("--models", type=option.models, help=f"folder of the exported files; none: {option.SHIPPED}")
    made.add_argument("--flow", type=option.run, help="run of the diffusion model, instead of the exported one")
    made.add_argument(
        "--phase", type=option.count, help="end of this phase of that run, counted from 1; none: the last checkpoint"
    )
    made.add_argument("--autoencoder", type=option.run, help="run of the autoencoder, instead of the exported one")
    made.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    made.add_argument("--shape", choices=(*SHAPES, "all"), default="circle")
    made.add_argument("--held-out", action="store_true", help="only combinations that training never shows")
    made.add_argument("--count", type=option.count, help="only the first combinations")
    made.add_argument("--guidance", type=option.amount, nargs="+", default=[SamplingConfig.guidance])
    made.add_argument("--steps", type=option.count, nargs="+", default=[SamplingConfig.steps])
    made.add_argument("--seed", type=option.seed, nargs="+", default=[SamplingConfig.seed], help="of places and noise")
    made.add_argument(
        "--noise", type=option.amount, nargs="+", default=[], help="on the latents of drawings, to be decoded too"
    )
    made.add_argument("--sheet", type=option.sheet, help="contact sheet of the last clips generated, a PNG")
    return made


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    made = parser()
    options = made.parse_args(arguments)
    release, recipe = options.release, RECIPES[options.release]
    option.check_phase(made, options, recipe)
    reads_models = options.flow is None or options.autoencoder is None
    option.check_use(made, options, "models", reads_models, "--flow and --autoencoder are measured instead")
    models = options.models or option.SHIPPED
    rows = rows_of(options.shape, options.held_out)[: options.count]
    if options.autoencoder is None:
        model = exported_autoencoder(models, release)
    else:
        model = averaged_autoencoder(AUTOENCODERS[release], options.autoencoder)
    pair = exported_pair(models, release) if options.flow is None else averaged(recipe, options.flow, options.phase)
    tokenizer, code = tokenizer_of(recipe, options.tokenizer), LatentCode(model)
    placed = recipe.phases[-1].batches.bank_scenes
    scenes = [scene for seed in options.seed for scene in drawn_scenes(rows, placed, seed)]
    log.info("%s, drawn: %s", release, measured(list(render(scenes, CLIP.frames, CLIP.height, CLIP.width))).said())
    given_back = through(model, code, scenes)
    beside = measured(given_back)
    # What is read right here is the most that a diffusion model can reach with this decoder.
    log.info("%s, through the autoencoder: %s; right: %s", release, beside.said(), read_right(rows, given_back))
    carrying = carrying_frames(release, CLIP.frames)
    between = [number for number in range(CLIP.frames) if number not in carrying]
    for name, numbers in (("frames that carry latents", carrying), ("frames between them", between)):
        log.info("%s, through the autoencoder, %s: %s", release, name, beside.at(numbers).said())
    for noise in options.noise:
        noisy = through(model, code, scenes, noise)
        log.info(
            "%s, noise %g on latents: %s; right: %s",
            release,
            noise,
            measured(noisy).said(beside),
            read_right(rows, noisy),
        )
    captions = as_trained(prompts_for(rows), release)
    for guidance, steps in itertools.product(options.guidance, options.steps):
        config = SamplingConfig(steps=steps, guidance=guidance)
        batches = generated(pair, tokenizer, captions, options.seed, config)
        videos = [video for latents in batches for video in decoded(latents, model, code)]
        log.info(
            "%s, guidance %g, %d steps: %s; right: %s",
            release, guidance, steps, measured(videos).said(beside), read_right(rows, videos),
        )  # fmt: skip
        if options.sheet is not None:
            contact_sheet(videos[: len(rows)]).save(options.sheet)
