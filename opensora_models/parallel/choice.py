"""Which plan a call has: the one that is predicted to take the fewest seconds over a known link; and why, in words.

Seconds are those of published rates and of the link's, nothing hidden behind arithmetic: good enough to tell plans
apart, which differ by whole rows or by gigabytes. Every rank chooses for itself and finds the same, since all are told
the same. Where no link is named (tries on one CPU, which nothing makes faster) all ranks that can take part.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from .clips import Clip
from .plan import Plan, plans_of
from .traffic import Link, seconds_of_call

FARTHEST = 64
"""How far above the ranks that were asked for a number that fits is looked for."""
MOST = 4096
"""From where it is looked for below them; no model has as many rows and heads."""
ELEMENT = 2
"""Bytes of a number: 16 bits, as GPUs compute it."""


def choose_plan(batch: int, clip: Clip, ranks: int, link: Link | None = None) -> Plan:
    """The best plan that uses all of ``ranks`` ranks.

    By predicted seconds over ``link``; without one by the work of the busiest rank, then by traffic. Raises ValueError
    where no plan uses so many ranks, with those next to it that do.
    """
    plans = plans_of(batch, clip, ranks)
    if not plans:
        raise ValueError(_refusal(batch, clip, ranks))
    return _best(plans, batch, clip, ranks, link)


@lru_cache(maxsize=64)
def plan_of_call(batch: int, clip: Clip, ranks: int, link: Link | None = None) -> Plan:
    """The plan of a call among ``ranks`` ranks, some of which may wait.

    Those that no plan can use; and over a ``link`` also those that are predicted to cost more time than they save.
    """
    if link is not None:
        legal = [plan for number in range(1, ranks + 1) for plan in plans_of(batch, clip, number)]
        return _best(legal, batch, clip, ranks, link)
    usable = next(number for number in range(ranks, 0, -1) if plans_of(batch, clip, number))
    return choose_plan(batch, clip, usable)


def predicted_seconds(plan: Plan, batch: int, clip: Clip, link: Link) -> float:
    """Of one call of the network: arithmetic at a published rate and traffic, one after the other."""
    arithmetic = plan.work(batch, clip) * clip.operations / clip.rate
    return arithmetic + seconds_of_call(plan, batch, clip, ELEMENT, link)


def sentence_of_call(plan: Plan, batch: int, clip: Clip, ranks: int, link: Link | None = None) -> str:
    """How a call is dealt among ``ranks`` ranks, and why so."""
    return " ".join([plan.sentence(batch, clip), *_reasons(plan, batch, clip, ranks, link)])


def _reasons(plan: Plan, batch: int, clip: Clip, ranks: int, link: Link | None) -> Iterable[str]:
    idle = ranks - plan.ranks
    waiting = f"{idle} more wait{'s' if idle == 1 else ''}, since "
    if link is None:
        if idle:
            yield f"{waiting}no plan has a use for more."
        return
    legal = [other for number in range(1, ranks + 1) for other in plans_of(batch, clip, number) if other != plan]
    took, traffic = predicted_seconds(plan, batch, clip, link), seconds_of_call(plan, batch, clip, ELEMENT, link)
    said = f"Chosen for {took:.2g} s a call by published rates, {traffic:.2g} s of it over {link.name}"
    if not legal:
        yield f"{said}."
        return
    other = _best(legal, batch, clip, ranks, link)
    yield f"{said}; {other.rows} x {other.sequence} would take {predicted_seconds(other, batch, clip, link):.2g} s."
    if idle:
        yield f"{waiting}sharing more would take longer."


def _best(plans: Iterable[Plan], batch: int, clip: Clip, ranks: int, link: Link | None) -> Plan:
    if link is None:
        return min(plans, key=lambda plan: (round(plan.work(batch, clip), 6), plan.sequence))
    return min(plans, key=lambda plan: (predicted_seconds(plan, batch, clip, link), plan.sequence, plan.rows))


def _refusal(batch: int, clip: Clip, ranks: int) -> str:
    sides = range(min(ranks - 1, MOST), 0, -1), range(ranks + 1, ranks + FARTHEST)
    nearest = " or ".join(
        str(good) for side in sides if (good := next((n for n in side if plans_of(batch, clip, n)), None))
    )
    rows = f"{batch} row{'s' if batch > 1 else ''}"
    return f"{ranks} ranks cannot share {rows} of this model, whose heads they do not divide; use {nearest}."
