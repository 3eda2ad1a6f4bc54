"""Trains a tiny diffusion model, or the text encoder of all: ``python -m training flow OUT … [--release 1.2]``.

Rectified flow (arXiv 2209.03003): x_t = (1 - τ)·x₀ + τ·ε, the network predicts x₀ - ε. Text is dropped for some rows
(they see the fixed null text), given frames are told in some steps, and some rows of those get empty frames instead,
which is what guidance on text and on images needs. The text encoder learns with a diffusion model of its own
(``--text-encoder``) and stays as it is for the others, so that one serves all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import options as option
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import code_of
from .average import MovingAverage
from .calibration import CALIBRATION, calibrate
from .clip_bank import ClipBank
from .clip_l import tokenizer_of
from .exported import add_code_option, code_in, exported_network, exported_text_encoder
from .flow_batches import Batch, batch_of
from .flow_losses import losses_of
from .flow_recipes import FlowConfig, Phase, add_recipe_options, recipe_of
from .latents import LatentCode
from .mmdit_pair import MMDiTPair, pair_of
from .muon import Muon
from .pair import Pair
from .progress import Progress
from .refused import Refused
from .text_encoder import Tokenizer

BY_ADAM = ("scale_shift_table", "_mod.", "modulation")  # of the blocks' matrices: those that make shifts and gates


def rate_at(config: FlowConfig, phase: Phase, step: int) -> float:
    """Learning rate at a step of a phase: a short rise, then a cosine from rate to final_rate."""
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / phase.steps)))
    highest = config.rate * phase.rate_share
    return min(1.0, (step + 1) / config.warm_up) * (config.final_rate + (highest - config.final_rate) * fall)


class Run:
    """One training run below a folder: the networks, their optimisers and where it stands. It starts from those of the
    weights ``before`` that have the same name and shape as its own. It learns latents of ``code``; None: the recipe's.

    The networks are small, so that a second core gains little inside their layers. Instead each of ``threads`` takes
    its own rows of a batch, and one draws the next batch while others change the weights.
    """

    def __init__(
        self, config: FlowConfig, folder: Path, tokenizer: Tokenizer, before: Mapping[str, Tensor] | None = None,
        threads: int = 1, code: LatentCode | None = None,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer = config, tokenizer
        self.progress = Progress(folder)
        code = code or code_of(AUTOENCODERS[config.version])
        self.bank = ClipBank(code, config.phases[0].batches.bank_scenes, config.bank)
        self.pair = pair_of(config)
        take_over(self.pair, before or {})
        self.average = MovingAverage(self.pair, config.average)
        self.trained = [weight for weight in self.pair.parameters() if weight.requires_grad]  # phases freeze some
        self.adam = torch.optim.Adam(self.trained, betas=(0.9, 0.98), fused=True)
        self.muon = Muon(
            (name, weight) for name, weight in self.pair.network.named_parameters()
            if "_blocks." in name and weight.ndim == 2 and not any(part in name for part in BY_ADAM)
        )  # fmt: skip
        self.threads = threads
        self.workers = ThreadPoolExecutor(threads)
        self._next: Future[Batch] | None = None
        self.done = 0
        if (state := self.progress.load()) is not None:
            self.progress.check(state["model"], self.pair)
            for name, part in self._parts().items():
                if name in state:
                    part.load_state_dict(state[name])
            self.done = state["step"]

    def _parts(self) -> dict[str, Any]:
        return {"model": self.pair, "average": self.average, "optimiser": self.adam, "muon": self.muon}

    def update(self) -> None:
        """One step."""
        config = self.config
        number, step = config.phase_at(self.done)
        phase = config.phases[number]
        if step == 0:
            self._begin(number)
        self.pair.text_encoder.requires_grad_(phase.trains_text)
        batch = self._draw(self.done) if self._next is None else self._next.result()
        numbers = self._gradients(batch)
        self._next = self.workers.submit(self._draw, self.done + 1) if self.done + 1 < config.steps else None
        rate = rate_at(config, phase, step)
        for group in self.adam.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.trained, config.gradient_limit)
        self.muon.step(config.muon_rate * rate / config.rate, self.workers.map)
        self.adam.step()
        self.average.update(self.pair)
        self.progress.write(self.done, **numbers, gradient=norm.item())
        self.done += 1
        if step + 1 == phase.steps:
            self.progress.keep(f"phase-{number + 1}", self._state())
        if self.progress.due():
            self.save()

    def draw_ahead(self, steps: int) -> None:
        """Draw the clips of a bank that the next steps take."""
        if self._next is not None:
            self._next.result()
        for step in range(self.done, self.done + steps):
            self._draw(step)

    def _draw(self, step: int) -> Batch:
        """The batch of a step, from the bank of its phase."""
        batches = self.config.phases[self.config.phase_at(step)[0]].batches
        if self.bank.scenes != batches.bank_scenes:
            self.bank = ClipBank(self.bank.code, batches.bank_scenes, self.config.bank)
        return batch_of(batches, self.bank, self.config.seed, step)

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Sets the gradients of a step; returns the losses for the log."""
        parts = batch.parts(self.threads)
        done = list(self.workers.map(partial(self._part, batch), parts))
        first, *others = (gradients for _, gradients in done)
        reached = [index for index, gradient in enumerate(first) if gradient is not None]
        for other in others:  # rows of one batch reach the same weights
            torch._foreach_add_([first[index] for index in reached], [other[index] for index in reached])
        for weight, gradient in zip(self.trained, first, strict=True):
            weight.grad = gradient
        return {name: sum(numbers[name] for numbers, _ in done) for name in done[0][0]}

    def _part(self, batch: Batch, part: Batch) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        """What some rows add to the losses of a batch and to its gradients."""
        losses, rows = losses_of(self.pair, self.tokenizer, part), len(batch.latents)
        kind = "given loss" if batch.given else "image loss" if batch.bucket.frames == 1 else "loss"
        means = {kind: (1.0, losses.velocity / batch.counted)}
        if losses.mistaken is not None:
            share = 1.0 if batch.bank is None else self.config.phases[self.config.phase_at(self.done)[0]].mistaken_share
            means["mistaken"] = self.config.mistaken * share, losses.mistaken / rows
        if losses.clock is not None:
            means["clock"] = self.config.clock, losses.clock / rows
        if losses.worded is not None:
            means["worded"] = self.config.worded, losses.worded / rows
        if losses.unrecognised is not None:
            means["unrecognised"] = self.config.unrecognised, losses.unrecognised / rows
        total = torch.stack([weight * mean for weight, mean in means.values()]).sum()
        weights = [weight for weight in self.trained if weight.requires_grad]
        gradients = iter(torch.autograd.grad(total, weights, allow_unused=True))
        found = tuple(next(gradients) if weight.requires_grad else None for weight in self.trained)
        return {name: mean.item() for name, (_, mean) in means.items()}, found

    def _begin(self, number: int) -> None:
        if number > 0:
            self.pair.load_state_dict(averaged(self.config, self.progress.folder, number).state_dict())
            self.average.forget()

    def save(self) -> None:
        """Write a checkpoint and the curves."""
        self.progress.save(self._state())

    def _state(self) -> dict[str, Any]:
        return {"step": self.done} | {name: part.state_dict() for name, part in self._parts().items()}


def take_over(pair: Pair | MMDiTPair, weights: Mapping[str, Tensor]) -> None:
    """Copy those of ``weights`` that have the same name and shape in ``pair``."""
    shapes = {name: value.shape for name, value in pair.state_dict().items()}
    pair.load_state_dict(
        {name: value for name, value in weights.items() if shapes.get(name) == value.shape}, strict=False
    )


def started_from(file: Path, config: FlowConfig) -> dict[str, Tensor]:
    """Weights of an exported diffusion model, of which a new one of ``config`` has some; Refused if it has none."""
    weights, shapes = exported_network(file, config.version), pair_of(config).state_dict()
    if not any(name in shapes and value.shape == shapes[name].shape for name, value in weights.items()):
        raise Refused(f"'{file}' has no weight that a diffusion model of {config.version} has.")
    return weights


def train(
    config: FlowConfig, folder: Path, tokenizer: Tokenizer, before: Mapping[str, Tensor] | None = None,
    code: LatentCode | None = None,
) -> Pair | MMDiTPair:  # fmt: skip
    """Run or resume to the end; returns the averaged networks. As many threads share the work as PyTorch would use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = Run(config, folder, tokenizer, before, threads, code)
        while run.done < config.steps:
            run.update()
        run.save()
    finally:
        torch.set_num_threads(threads)
    return averaged(config, folder)


def averaged(config: FlowConfig, folder: Path, phase: int | None = None) -> Pair | MMDiTPair:
    """The averaged networks of a run's last checkpoint, or of the end of one of its phases (counted from 1)."""
    progress = Progress(folder)
    state = progress.read() if phase is None else progress.kept(f"phase-{phase}")
    if phase is None and state["step"] == config.steps:
        phase = len(config.phases)
    pair = pair_of(config)
    progress.check(state["model"], pair)
    pair.load_state_dict(state["model"])
    average = MovingAverage(pair, config.average)
    average.load_state_dict(state["average"])
    average.applied_to(pair)
    if phase is not None and (stays := config.phases[phase - 1].stays):
        older = averaged(config, folder, phase - 1).state_dict()
        pair.load_state_dict({name: value.lerp(older[name], stays) for name, value in pair.state_dict().items()})
    return pair.eval()


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training flow", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=option.new_folder, help="folder of the run; an interrupted run there is continued"
    )
    parser.add_argument(
        "--tokenizer", type=option.tokenizer, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer"
    )
    add_recipe_options(parser)
    parser.add_argument("--before", type=option.models, help="models folder with the exported text encoder")
    parser.add_argument(
        "--start", type=option.file, help="an exported diffusion model of the same family, to begin with those of its"
        " weights that have the same name and shape"
    )  # fmt: skip
    add_code_option(parser)
    parser.add_argument(
        "--clip-tokenizer",
        type=option.clip_tokenizer,
        help="for 2.0, ComfyUI's comfy/sd1_tokenizer, if it is elsewhere",
    )
    parser.add_argument(
        "--calibrate", action="store_true", help=f"do {CALIBRATION} steps apart and tell the whole time"
    )
    options = parser.parse_args(arguments)
    config = recipe_of(options)
    if options.text_encoder == (options.before is not None):
        parser.error(
            "--before has no use beside --text-encoder, whose text encoder is the one that is trained"
            if options.text_encoder
            else "a diffusion model needs --before, a models folder with the text encoder that it is trained with"
        )
    before = {} if options.before is None else exported_text_encoder(options.before)
    if options.start is not None:
        before |= started_from(options.start, config)
    tokenizer = tokenizer_of(config, options.tokenizer, options.clip_tokenizer)
    code = code_in(options.code, config.version)
    if options.calibrate:
        calibrate(partial(calibration_run, config, tokenizer, before, code), [phase.steps for phase in config.phases])
    else:
        if options.start is not None:
            option.say_what_comes_late("--start", options.folder)
        train(config, options.folder, tokenizer, before, code)


def calibration_run(
    config: FlowConfig, tokenizer: Tokenizer, before: Mapping[str, Tensor] | None, code: LatentCode | None,
    steps: Sequence[int], folder: Path,
) -> Iterator[None]:  # fmt: skip
    """A run with so many steps in every phase; each step taken is one item."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    phases = tuple(replace(phase, steps=count) for phase, count in zip(config.phases, steps, strict=True))
    run = Run(replace(config, phases=phases), folder, tokenizer, before, threads, code)
    while run.done < run.config.steps:
        number, step = run.config.phase_at(run.done)
        if step == 0:  # clips of a bank are drawn once in a run, so that most steps find them there
            run.draw_ahead(run.config.phases[number].steps)
        run.update()
        yield
