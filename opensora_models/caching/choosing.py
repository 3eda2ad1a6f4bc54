"""The best step table of every size: a path through the run whose worst reuse is the smallest.

``errors[i][k]`` is how far it moves the result when step i is computed and stands in for the k steps after it. A table
is a chain of such spans from the first step to the end. Of all chains with the same number of computed steps the one
is taken whose largest error is smallest, then its second largest, and so on (LeMiCa, arXiv 2511.00090: lexicographic
minimax). Adding one span to two chains of equal length keeps their order, so that the best chain is made of best
chains and a dynamic programme finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Errors = Sequence[Sequence[float]]


def worst_first(values: Sequence[float]) -> tuple[float, ...]:
    """What chains are ordered by."""
    return tuple(sorted(values, reverse=True))


def best_tables(errors: Errors, costs: Sequence[Sequence[int]] | None = None) -> dict[int, str]:
    """Cost -> flags of the best table that costs so much; without ``costs`` that is the number of computed steps.

    Args:
        errors: a row a step; row i holds the errors of 0, 1, 2 … reused steps after step i, as many as were measured.
        costs: shaped like the errors, what each span costs. Where guidance oscillates a reused step may have to be
            computed all the same, which costs and moves nothing.

    Costs that no chain of measured spans has are left out. Of tables as good as each other the one that computes most
    is taken. Raises ValueError for errors that are no numbers.
    """
    steps = len(errors)
    _check(errors)
    # chains[end][count]: (errors worst first, flags) of the best chain over steps 0 … end - 1 with so many spans
    chains: list[dict[int, tuple[tuple[float, ...], str]]] = [{0: ((), "")}, *({} for _ in range(steps))]
    for start in range(steps):
        for reused, error in enumerate(errors[start][: steps - start]):
            end, span = start + 1 + reused, "1" + "0" * reused
            for count, (known, flags) in chains[start].items():
                found = worst_first([*known, *([float(error)] if error else [])]), flags + span
                cost = count + (1 if costs is None else costs[start][reused])
                best = chains[end].get(cost)
                if best is None or _order(found) < _order(best):
                    chains[end][cost] = found
    return {count: flags for count, (_, flags) in sorted(chains[steps].items())}


def _order(chain: tuple[tuple[float, ...], str]) -> tuple[tuple[float, ...], int]:
    errors, flags = chain
    return errors, flags.count("0")


def errors_of(flags: str, errors: Errors) -> list[float]:
    """The error of every span of a table, in order."""
    starts = [step for step, flag in enumerate(flags) if flag == "1"]
    ends = [*starts[1:], len(flags)]
    return [float(errors[start][end - start - 1]) for start, end in zip(starts, ends, strict=True)]


def _check(errors: Errors) -> None:
    if not errors:
        raise ValueError("A step table needs errors of at least one step.")
    for step, row in enumerate(errors):
        if not row or not all(math.isfinite(error) and error >= 0 for error in row):
            raise ValueError(f"The errors of step {step} must be numbers of at least 0, the first for no reuse.")
