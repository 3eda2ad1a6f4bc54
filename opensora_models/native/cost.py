"""What a clip costs here, in sentences: gigabytes, and minutes once a run has been measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..parallel.memory import Sharing
from ..releases.release import Release
from ..sampling.effort import WEIGHT_SIZES, Needs, memory_sentence, rows_of_run, time_sentence
from ..stdit3.config import XL_V12, XL_V13
from .memory import activation_bytes, model_needs
from .model.parallel import sharing_of
from .model.speed import SAMPLE_CELLS, cells_of, network_of, speed_of

GUIDED_ROWS = 2
"""Of a step with guidance by text, of all releases."""
RELEASED_STDIT3 = {config.version: config for config in (XL_V12, XL_V13)}


def cost_sentences(release: Release, model: Any, shape: Sequence[int], card: float | None) -> list[str]:
    """Memory and time of sampling latents [1, C, T, h, w]: the MODEL's, without one the released network's.

    ``card``: bytes of the graphics card, None where there is none.
    """
    if model is None:
        needs = _released_needs(release, shape)
    elif (sharing := sharing_of(model)) is None:
        needs = model_needs(model, shape)
    else:
        needs = _needs_of_share(model, sharing, shape)
    said = [] if needs is None else [memory_sentence(needs, card)]
    return said + _time(release, model, shape)


def _needs_of_share(model: Any, sharing: Sharing, shape: Sequence[int]) -> Needs:
    """What each device needs of a step with guidance."""
    step = [GUIDED_ROWS, *shape[1:]]
    with model.model.shared_among(sharing):
        held = model.model.memory_required(step)
        plan = sharing.plan(GUIDED_ROWS, model.model.clip_of(step, {}))
    counted = f"its part of two rows, shared as {plan.rows} x {plan.sequence} (rows x sequence)"
    return Needs({"this MODEL's": float(model.model_size())}, held, counted, sharing.ranks)


def _time(release: Release, model: Any, shape: Sequence[int]) -> list[str]:
    count = (lambda cells: release.operations(cells, release.text.limit)) if model is None else _counting(model)
    dtype = None if model is None else model.model.get_dtype_inference()
    rate = speed_of(network_of(release, count(SAMPLE_CELLS)), dtype)
    if rate is None:
        return []
    run = count(cells_of(shape)) * rows_of_run(release, "text", shape[2])
    return [time_sentence(run, rate, release.times.steps)]


def _counting(model: Any) -> Any:
    return model.model.operations_of_row


def _released_needs(release: Release, shape: Sequence[int]) -> Needs | None:
    """What the released network needs; None where its row has not been counted."""
    size = WEIGHT_SIZES["bf16"]
    if release.row_bytes is not None:
        row = release.row_bytes(cells_of(shape), release.text.limit, size)
    elif release.id in RELEASED_STDIT3:
        row = activation_bytes(RELEASED_STDIT3[release.id], shape, size)
    else:
        return None
    return Needs({name: release.weights * size for name, size in WEIGHT_SIZES.items()}, row)
