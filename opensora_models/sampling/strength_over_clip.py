"""The strength of a reference along the clip: a curve of factors from its first latent frame there to its last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..releases.known import RELEASES
from .factor_curve import FactorCurve, course_of
from .masks import KEPT
from .references import Reference

UNCHANGED = "The curve is flat at 1: the references are as they were."


@dataclass(frozen=True)
class Curved:
    """References of which one has a curve, a sentence on what it does, and whether it does anything."""

    references: tuple[Reference, ...] = field(repr=False)
    said: str
    works: bool = True


def with_strength_curve(references: Sequence[Reference], number: int, curve: FactorCurve) -> Curved:
    """The references with a curve on the strength of one; a second curve multiplies.

    Args:
        number: counted from 0 in the order of the chain, negative from its end.

    Raises:
        ValueError: a number that no reference has.
    """
    number = _checked(number, len(references))
    given = references[number]
    if curve.flat:
        return Curved(tuple(references), UNCHANGED, works=False)
    if not any(given.ratios):
        return Curved(tuple(references), _kept(number, given), works=False)
    made = replace(given, curves=(*given.curves, curve))
    if len(made.ratios) > 1:
        said = f"Reference {number}: its strength {course_of(made.ratios)} over its {len(made.ratios)} latent frames."
    else:
        was, now = given.ratios[0], made.ratios[0]
        said = (
            f"Reference {number} is a single latent frame, for which the curve's first factor counts: its strength "
            f"{was:g} {'stays' if was == now else f'becomes {now:g}'}."
        )
    return Curved((*references[:number], made, *references[number + 1 :]), said)


def _kept(number: int, reference: Reference) -> str:
    """Why no factor changes a reference that is kept as it is, by its own strength or by curves it has already."""
    release = RELEASES.get(reference.release or "")
    if release is not None and not release.given.frame_mask:
        return f"The curve changes nothing: {release.title} can only keep the frames of reference {number} as they are."
    if reference.edit_ratio != KEPT:
        return (
            f"The curve changes nothing: the curves before it bring the strength of reference {number} from "
            f"{reference.edit_ratio:g} to {KEPT:g}, and a factor on it leaves it there; raise one of them or take it "
            "away."
        )
    return (
        f"The curve changes nothing: the strength of reference {number} is {KEPT:g}, and a factor on it leaves it "
        f"there. To keep its beginning and free its end, give it strength 1 and let the curve rise from 0 to 1."
    )


def _checked(number: int, count: int) -> int:
    if not count:
        raise ValueError("The chain holds no reference whose strength could follow a curve; connect at least 1.")
    if -count <= number < count:
        return number % count
    raise ValueError(
        f"There is no reference {number} in a chain of {count}, counted from 0; the nearest good value is "
        f"{-count if number < 0 else count - 1}."
    )
