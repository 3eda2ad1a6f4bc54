"""How far a run has come with words and outlines, without sampling: ``python -m training probe --flow RUN …``.

Two tables. From pure noise: the share of each motion word that the network's guess shows, 0 = the mean of all motions,
1 = the mean clip of that word. From noisy clips: the squared error of the guess beside that of the best guess there is.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ..opensora_models.releases.known import release_named
from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS
from ..opensora_models.text.suffixes import FRAME_RATE, append_suffixes
from . import options as option
from .captions import simple_caption
from .clip_bank import ClipBank, Words, expected
from .clip_l import tokenizer_of
from .evaluate import CLIP
from .exported import add_code_option, code_in
from .flow import averaged
from .flow_batches import FROM_MIDDLE_TURNING
from .flow_recipes import RECIPES
from .mmdit_pair import MMDiTPair
from .pair import Pair, padded
from .progress import log
from .scenes import MOTIONS
from .text_encoder import Tokenizer

LOOKS = (("red", "square", "black"), ("blue", "triangle", "white"))
NOISES = 6  # draws of noise that a guess is averaged over
LEVELS = (1.0, 0.9, 0.7, 0.5, 0.3)


@torch.no_grad()
def guess(pair: Pair | MMDiTPair, tokenizer: Tokenizer, words: list[Words], x: Tensor, level: float) -> Tensor:
    """The clean latents [B, C, l, h, w] that the network sees in ``x`` at this noise level."""
    captions = [simple_caption(*row) for row in words]
    times = torch.full((len(words),), level * TRAIN_TIMESTEPS)
    if isinstance(pair, MMDiTPair):
        captions = [append_suffixes(caption, FRAME_RATE, release_named("2.0").text.motion) for caption in captions]
        return x + level * pair.velocity_and_tokens(x, times, *pair.read(tokenizer, captions), CLIP)[0]
    yes = torch.ones(len(words), dtype=torch.bool)
    ids, kept = padded(tokenizer, captions)
    return x + level * pair.velocity(x, times, pair.states(ids, kept, yes), kept, CLIP)


def learned_shares(got: Tensor, means: Tensor) -> Tensor:
    """[N] shares of what sets each of ``means`` [N, …] apart from their mean that ``got`` [N, …] shows."""
    apart, shown = (values - values.mean(0, keepdim=True) for values in (means, got))
    return (shown * apart).flatten(1).sum(1) / apart.square().flatten(1).sum(1)


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training probe", description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=option.run, required=True, help="run of the diffusion model")
    add_code_option(parser)
    parser.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    parser.add_argument("--release", choices=sorted(RECIPES), default="1.3", help="which Open-Sora")
    parser.add_argument(
        "--phase", type=option.count, help="end of this phase, counted from 1; none: the last checkpoint"
    )
    options = parser.parse_args(arguments)
    option.check_phase(parser, options, RECIPES[options.release])
    pair = averaged(RECIPES[options.release], options.flow, options.phase)
    tokenizer = tokenizer_of(RECIPES[options.release], options.tokenizer)
    bank = ClipBank(code_in(options.code, options.release), FROM_MIDDLE_TURNING)
    torch.manual_seed(0)
    for colour, shape, background in LOOKS:
        words: list[Words] = [(colour, shape, motion, background) for motion in MOTIONS]
        clips = torch.stack([bank(row, CLIP.frames, CLIP.height, CLIP.width) for row in words]).float()
        noise = torch.randn(NOISES, *clips[:, 0].shape)
        got = torch.stack([guess(pair, tokenizer, words, x, 1.0) for x in noise]).mean(0)
        shares = dict(zip(MOTIONS, learned_shares(got, clips.mean(1)).tolist(), strict=True))
        log.info("%s %s: %s", colour, shape, {motion: round(share, 2) for motion, share in shares.items()})
        for level in LEVELS:
            own = clips[:, 0]
            x = (1 - level) * own + level * noise[0]
            best = expected(x, torch.full((len(words),), level), clips)
            errors = [float((told - own).square().mean()) for told in (guess(pair, tokenizer, words, x, level), best)]
            log.info("%s %s at noise level %.1f: error %.4f, best guess %.4f", colour, shape, level, *errors)
