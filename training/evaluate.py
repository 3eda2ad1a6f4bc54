"""Samples held-out prompts and counts how often colour, shape and motion are right: ``python -m training evaluate …``.

Any list of prompts can be measured: a text file with one "colour shape motion" per line, e.g. "red circle left". Where
no run is given, the files of ``--models`` are measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..opensora_models.releases.groups import GROUP_FRAMES
from ..opensora_models.releases.known import release_named
from ..opensora_models.text.suffixes import FRAME_RATE, append_suffixes
from . import options as option
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import Autoencoder, averaged_autoencoder
from .captions import simple_caption
from .clip_l import tokenizer_of
from .exported import add_code_option, code_in, exported_autoencoder, exported_pair
from .flow import averaged
from .flow_batches import Bucket
from .flow_recipes import RECIPES
from .flow_sampling import SamplingConfig, sample
from .latents import LatentCode
from .mmdit_pair import MMDiTPair
from .mmdit_sampling import sample_mmdit
from .pair import Pair
from .pictures import contact_sheet, to_bytes
from .progress import log
from .reading import Reading, read_clip
from .scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, held_out, set_aside

Words = tuple[str, str, str]
ROWS_AT_ONCE = 16
SEED_STEP = 1000  # between the noise of one ``--seed`` and the next; the batches of one lie in between
CLIP = Bucket(GROUP_FRAMES, 64, 64, batch=ROWS_AT_ONCE, share=1.0)


def prompts_for(rows: Sequence[Words]) -> list[str]:
    """The standard phrasing for each row, over the backgrounds in turn."""
    backgrounds = list(BACKGROUNDS)
    return [simple_caption(*row, backgrounds[index % len(backgrounds)]) for index, row in enumerate(rows)]


def as_trained(captions: list[str], release: str) -> list[str]:
    """Captions with the ending that prompts of this release have."""
    rules = release_named(release).text
    return [append_suffixes(caption, FRAME_RATE, rules.motion) for caption in captions] if rules.suffixes else captions


def read_rows(path: Path) -> list[Words]:
    """Rows of a prompt list; ValueError names the line that is none."""
    rows = [tuple(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not rows:
        raise ValueError(f"There is no line in '{path.name}'; each is 'colour shape motion'.")
    for row in rows:
        if len(row) != 3:
            raise ValueError(f"'{' '.join(row)}' in '{path.name}' is not of the form 'colour shape motion'.")
        for word, words in zip(row, (COLOURS, SHAPES, MOTIONS), strict=True):
            if word not in words:
                raise ValueError(f"'{word}' in '{' '.join(row)}' of '{path.name}' is none of {', '.join(words)}.")
    return rows  # type: ignore[return-value]


def shares(rows: Sequence[Words], readings: Sequence[Reading]) -> dict[str, float]:
    """Share of clips in which colour, shape and motion are as asked, 0…1."""
    count = len(rows)
    return {
        name: sum(getattr(reading, name) == row[index] for row, reading in zip(rows, readings, strict=True)) / count
        for index, name in enumerate(("colour", "shape", "motion"))
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """Where the true share lies, 95 % sure, if ``share`` of ``count`` clips were right (Wilson's score interval)."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def told(right: Mapping[str, float], count: int) -> str:
    """Shares of ``count`` clips with their intervals, as in 'colour 97.7% (95.0 to 98.9)'."""
    parts = []
    for name, share in right.items():
        low, high = interval(share, count)
        parts.append(f"{name} {share:.1%} ({low * 100:.1f} to {high * 100:.1f})")
    return ", ".join(parts)


def decoded(latents: Tensor, model: Autoencoder | None, code: LatentCode) -> Tensor:
    """Pixels of normalised latents, by the decoder or, without one, by the nearest pictures of the code."""
    if model is None:
        return code.pictures(latents)
    with torch.no_grad():
        return torch.cat([model.decode(model.denormalise(part)) for part in latents.split(4)])


def sampled(
    pair: Pair | MMDiTPair, tokenizer: Any, captions: Sequence[str], config: SamplingConfig, bucket: Bucket = CLIP
) -> Tensor:
    """Normalised latents [B, C, l, h, w] of a clip for each caption, from either kind of network."""
    return (sample_mmdit if isinstance(pair, MMDiTPair) else sample)(pair, tokenizer, captions, bucket, config)


def generated(
    pair: Pair | MMDiTPair, tokenizer: Any, captions: Sequence[str], seeds: Sequence[int], config: SamplingConfig,
    bucket: Bucket = CLIP,
) -> Iterator[Tensor]:  # fmt: skip
    """Normalised latents of the captions for every seed, a batch at a time, each from noise of its own."""
    for seed in seeds:
        for number, start in enumerate(range(0, len(captions), ROWS_AT_ONCE)):
            own = replace(config, seed=seed * SEED_STEP + number)
            yield sampled(pair, tokenizer, captions[start : start + ROWS_AT_ONCE], own, bucket)


def parser() -> argparse.ArgumentParser:
    """Options of this module."""
    made = argparse.ArgumentParser(prog="python -m training evaluate", description=__doc__.splitlines()[0])
    made.add_argument("--models", type=option.models, help=f"folder of the exported files; none: {option.SHIPPED}")
    made.add_argument("--flow", type=option.run, help="run of the diffusion model, instead of the exported one")
    made.add_argument(
        "--autoencoder", type=option.run, help="run of the autoencoder; none: the exported one, or beside --flow the"
        " code's own pictures"
    )  # fmt: skip
    add_code_option(made)
    made.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--prompts",
        type=option.given_as(read_rows),
        help="list of 'colour shape motion'; none: the held-out combinations",
    )
    which.add_argument("--set-aside", action="store_true", help="those that nothing is decided on; read them once")
    made.add_argument("--count", type=option.count, help="only the first prompts of the list")
    made.add_argument("--phase", type=option.count, help="end of this phase, counted from 1; none: the last checkpoint")
    made.add_argument("--guidance", type=option.amount, default=SamplingConfig.guidance)
    made.add_argument("--seed", type=option.seed, nargs="+", default=[SamplingConfig.seed], help="of the noise")
    made.add_argument("--frames", type=option.count, default=CLIP.frames, help="of every clip")
    made.add_argument("--sheet", type=option.sheet, help="contact sheet to write, a PNG")
    made.add_argument("--release", choices=sorted(RECIPES), default="1.3", help="which Open-Sora")
    return made


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    made = parser()
    options = made.parse_args(arguments)
    option.check_phase(made, options, RECIPES[options.release])
    option.check_frames(made, options.frames, options.release)
    has_run = options.flow is not None
    option.check_use(made, options, "models", not has_run, "--flow is measured instead")
    option.check_use(
        made, options, "code", has_run and options.autoencoder is None, "latents are told beside --flow alone, where no"
        " --autoencoder makes the pictures"
    )  # fmt: skip
    recipe, models = AUTOENCODERS[options.release], options.models or option.SHIPPED
    rows = (list(set_aside()) if options.set_aside else options.prompts or list(held_out()))[: options.count]
    code, model = code_in(options.code, options.release), None
    if options.flow is None:
        pair = exported_pair(models, options.release)
    else:
        pair = averaged(RECIPES[options.release], options.flow, options.phase)
    if options.autoencoder is not None:
        model = averaged_autoencoder(recipe, options.autoencoder)
    elif options.flow is None:
        model = exported_autoencoder(models, options.release)
    tokenizer = tokenizer_of(RECIPES[options.release], options.tokenizer)
    captions = as_trained(prompts_for(rows), options.release)
    config, bucket = SamplingConfig(guidance=options.guidance), replace(CLIP, frames=options.frames)
    batches = generated(pair, tokenizer, captions, options.seed, config, bucket)
    shown: list[Tensor] = []
    readings: list[Reading] = []
    for latents in batches:
        videos = list(decoded(latents, model, code))
        for video in videos:
            reading, caption = read_clip(to_bytes(video)), captions[len(readings) % len(rows)]
            log.info("%s -> %s %s %s", caption, reading.colour, reading.shape, reading.motion)
            readings.append(reading)
        shown += videos[: max(0, len(rows) - len(shown))]
    asked = rows * len(options.seed)
    log.info(
        "%s: %d prompts, %d clips of %d frames, with 95 %% intervals: %s",
        options.release, len(rows), len(asked), options.frames, told(shares(asked, readings), len(asked)),
    )  # fmt: skip
    if options.sheet is not None:
        contact_sheet(shown, every=1 if model is None else 2).save(options.sheet)
