"""Says which patches of a MODEL the network has no place for, so that nothing is left out without a word.

Most patches of core were made for the U-Nets of Stable Diffusion. A MODEL carries them whatever it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...stdit3.blocks import ATTENTION_OUTPUT, CROSS_OUTPUT
from ..messages import tell

Places = Mapping[str, int]
"""How many blocks of each kind a network has, by the name under which patches call them."""

PLACED = (ATTENTION_OUTPUT, CROSS_OUTPUT)
"""Entries of ``transformer_options["patches"]`` that STDiT3 calls beside those named like its blocks."""

PAIRS = {ATTENTION_OUTPUT: "attn1_patch", CROSS_OUTPUT: "attn2_patch"}
"""Patches on what an attention gives, and the patch on what goes in that others set together with it."""

NAG = "NAGuidance."
"""Under this name core's Normalized Attention Guidance sets its patch, which compares the rows of both prompts."""


def attention_patches(options: Mapping[str, Any]) -> list[Any]:
    """The patches on what attention gives, which see the rows of one call: rows that they compare have to share it."""
    return list(options.get("patches", {}).get(ATTENTION_OUTPUT, ()))


def tell_rows_apart(options: Mapping[str, Any]) -> None:
    """Say that Normalized Attention Guidance has no effect where a call has one prompt's rows only."""
    names = (getattr(patch, "__qualname__", "") for patch in attention_patches(options))
    if len(set(options.get("cond_or_uncond", ()))) == 1 and any(name.startswith(NAG) for name in names):
        tell(
            "Normalized Attention Guidance compares the rows of the prompt and of the negative prompt. At least one "
            "step computes them one by one, where it has no effect: one of them does not count there, or too little "
            "memory is free for both; a smaller or shorter clip needs less."
        )


def without_halves(options: dict[str, Any]) -> dict[str, Any]:
    """``transformer_options`` without patches on an attention's output whose other half, on its input, has no place.

    Token merging is such a pair: what was never merged cannot be taken apart.
    """
    patches = options.get("patches", {})
    halves = {output for output, entry in PAIRS.items() if patches.get(entry)}
    if not halves:
        return options
    return {**options, "patches": {name: patch for name, patch in patches.items() if name not in halves}}


def unplaced(
    options: Mapping[str, Any], places: Places, control: Any = None, placed: Collection[str] = PLACED
) -> list[str]:
    """Names of patches in ``transformer_options`` that will not be called by a network of these blocks.

    ``placed``: the patches it calls beside those after a block.

    Raises ValueError for a replaced attention of a U-Net block: nodes that set one read what it notes, or compute
    another prediction with it.
    """
    called = without_halves(dict(options)).get("patches", {})
    names = [
        name for name, patches in options.get("patches", {}).items()
        if patches and name not in places and (name not in placed or name not in called)
    ]  # fmt: skip
    for kind, replacements in options.get("patches_replace", {}).items():
        for place in replacements:
            if kind in ("attn1", "attn2"):
                raise ValueError(
                    f"The MODEL carries a replacement of '{kind}' at {place}, as Perturbed-Attention Guidance and "
                    "Self-Attention Guidance make it for U-Nets; Open-Sora has no such place, so take that node out."
                )
            if kind != "dit" or not 0 <= place[1] < places.get(place[0], 0):
                names.append(f"{kind} {' '.join(map(str, place))}")
    return names if control is None else [*names, "ControlNet"]


def warn_once(names: list[str], said: set[str], places: Places) -> None:
    """One sentence for the names that were not said before."""
    fresh = [name for name in names if name not in said]
    said.update(fresh)
    if fresh:
        blocks = " and ".join(f"{kind} 0 to {count - 1}" for kind, count in places.items() if count)
        tell(
            "Patches on the MODEL without effect, because Open-Sora's network has no place for them: "
            f"{', '.join(fresh)}. Its blocks are {blocks}."
        )
