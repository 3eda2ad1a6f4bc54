"""The place in the networks where workers come in: the hook around their blocks, set for the calls of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...mmdit.network import BEFORE_BLOCK, MMDiT
from ...parallel.stack import Crew, Hook, inside, shared_mmdit, shared_stdit3
from ...parallel.workers import Workers, with_workers
from ...stdit3.blocks import BRANCH_HOOK
from ...transformer.arithmetic import ARITHMETIC
from ...transformer.stack import STACK_HOOK

PARALLEL = "opensora_parallel"
"""Of the run's :class:`Helpers` among the options that reach the network."""

LEAVE = "leave it away, or sample without Open-Sora Parallel"

OURS = {"patches", "patches_replace", "optimized_attention_override", ARITHMETIC, BRANCH_HOOK, BEFORE_BLOCK}
"""Options that change what blocks compute."""


@dataclass(frozen=True)
class Helpers:
    """The workers of a run, and the digest of what they hold."""

    workers: Workers
    numbers: str


def with_help(network: Any, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """``network.predict``, whose blocks are shared where the run has workers."""
    helpers = options.get(PARALLEL)
    if helpers is None:
        return network.predict

    def predict(x: Tensor, timestep: Tensor, context: Any = None, *, transformer_options: Any, **conds: Any) -> Tensor:
        _expect_plain_blocks(transformer_options)
        inputs = {"x": x, "timestep": timestep, **conds}
        if isinstance(network, MMDiT):
            made = network.made_apart(timestep, conds["pooled"], x)
            inputs["modulations"] = None if made is None else (made.double, made.single, made.final)
        hook = with_workers(helpers.workers, inputs, helpers.numbers, lambda crew: hook_of(network, crew, inputs))
        hooked = {**transformer_options, STACK_HOOK: inside(transformer_options.get(STACK_HOOK), hook)}
        return network.predict(x, timestep, context, transformer_options=hooked, **conds)

    return predict


def hook_of(network: Any, crew: Crew, inputs: Mapping[str, Any]) -> Hook:
    """The hook that every rank has around its blocks in one call."""
    if isinstance(network, MMDiT):
        return shared_mmdit(crew, network.config, inputs["text"].shape[1])
    frames, height, width = inputs["x"].shape[2:]
    rows, columns = network.config.patch_size[1:]
    return shared_stdit3(crew, network.config, frames, (-(-height // rows), -(-width // columns)))


def _expect_plain_blocks(options: Mapping[str, Any]) -> None:
    for name in sorted(OURS):
        if options.get(name):
            raise ValueError(f"Workers cannot be told of {name} on this MODEL, which changes its blocks; {LEAVE}.")
