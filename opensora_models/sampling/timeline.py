"""The plan of a timeline: one plain text that says which reference goes where and which words hold when.

The text is readable JSON or the mask strategy of Open-Sora 1.2 (:mod:`.masks`); both say the same about references,
words can only be written in JSON. Counts are latent frames, as in the mask strategy, so that every place can be said
exactly; what is left away has the mask strategy's default. ``js/timeline/plan.js`` reads the same texts for the view,
and ``tests/timeline/cases.json`` holds both to the same answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..messages.printable import is_printable, printable
from ..messages.quoting import one_line
from ..text.segments import MAX_SEGMENTS, PromptPart, join_parts
from .masks import FREE, KEPT, Strategy, format_strategy, parse_strategy

Notation = Literal["json", "strategy"]
REFERENCES, PROMPTS = "references", "prompts"
MOST_FRAMES = 10000
"""Latent frames a number of a plan may reach, far beyond every clip; the Reference node has the same limit."""
MOST_ENTRIES = 1000
"""Entries of each list; a text with more was not written for a timeline."""

FIELDS: dict[str, tuple[str, float, float]] = {
    "reference": ("reference", 0, MOST_ENTRIES - 1),
    "at": ("target_start", -MOST_FRAMES, MOST_FRAMES),
    "length": ("length", 1, MOST_FRAMES),
    "from": ("reference_start", -MOST_FRAMES, MOST_FRAMES),
    "strength": ("edit_ratio", KEPT, FREE),
    "segment": ("loop", -1, MAX_SEGMENTS - 1),
}
"""What JSON calls the fields of :class:`.masks.Strategy`, in the order they are written, and their limits."""
PROMPT_FIELDS = ("segment", "text")
EXAMPLE = '{"references": [{"reference": 0, "at": 0}]}'
STRATEGY_EXAMPLE = "0,0,0,0;0,1,0,-1"
OUTER_SPACE = re.compile(r"^[\s\ufeff]+|[\s\ufeff]+$")
"""What stands around a text and says nothing; files of some editors begin with U+FEFF."""
STRATEGY_START = re.compile(r"[-+.,;\d]")
LONGEST_SENTENCE = 240
SHOWN = 40
"""Characters of a wrong value that a sentence shows."""


@dataclass(frozen=True)
class Plan:
    """Places of references in the order written, where the later one wins, and the words of a long video's segments.

    ``notation`` is how the text was written.
    """

    places: tuple[Strategy, ...] = ()
    prompts: tuple[PromptPart, ...] = ()
    notation: Notation = "json"

    @property
    def prompt(self) -> str:
        """The words as the text nodes take them: an ordinary prompt where nothing changes, "" without any."""
        parts = sorted(self.prompts, key=lambda part: part.first_segment)
        return parts[0].text.strip() if len(parts) == 1 else join_parts(parts)

    @property
    def strategy(self) -> str:
        """The places in Open-Sora's own notation."""
        return format_strategy(self.places)


def parse_plan(text: str) -> Plan:
    """The plan a text describes; an empty text is an empty plan.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    written = OUTER_SPACE.sub("", text)
    if not written:
        return Plan()
    if written[0] in "{[":
        return _from_json(written)
    if not written.isascii() or not STRATEGY_START.match(written):
        raise ValueError(
            f"The plan is neither JSON, for example {EXAMPLE}, nor a mask strategy, for example {STRATEGY_EXAMPLE}; it "
            f"begins with {_shown(written)}."
        )
    places = tuple(_from_strategy(written))
    _check_count(REFERENCES, places)
    for number, place in enumerate(places):
        for name, (attribute, _, _) in FIELDS.items():
            _number(f"The {name} of group {number} of the mask strategy", name, getattr(place, attribute))
    return Plan(places, notation="strategy")


def _from_strategy(text: str) -> list[Strategy]:
    """Groups of a mask strategy; sentences of :mod:`.masks` quote a whole group, however long it is."""
    try:
        return parse_strategy(text)
    except ValueError as error:
        raise ValueError(one_line(str(error), LONGEST_SENTENCE)) from None


def format_plan(plan: Plan) -> str:
    """The plan in its notation, every field written out; :func:`parse_plan` reads it back."""
    if plan.notation == "strategy" and not plan.prompts:
        return plan.strategy
    lists = {
        REFERENCES: [_written(_fields_of(place)) for place in plan.places],
        PROMPTS: [_written({"segment": part.first_segment, "text": part.text}) for part in plan.prompts],
    }
    blocks = [f'  "{name}": [\n    ' + ",\n    ".join(rows) + "\n  ]" for name, rows in lists.items() if rows]
    return "{\n" + ",\n".join(blocks) + "\n}" if blocks else "{}"


def _fields_of(place: Strategy) -> dict[str, Any]:
    return {name: getattr(place, attribute) for name, (attribute, _, _) in FIELDS.items()}


def _written(fields: Mapping[str, Any]) -> str:
    """One object on one line; whole numbers without a point, as a page writes them."""
    return json.dumps({name: _plain(value) for name, value in fields.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _from_json(text: str) -> Plan:
    given = _read(text)
    if not isinstance(given, dict):
        raise ValueError(f"The plan is {_shown(given)}, but must be one object in braces, for example {EXAMPLE}.")
    _check_names("The plan", given, (REFERENCES, PROMPTS))
    rows = {name: list(_objects(name, given.get(name, []))) for name in (REFERENCES, PROMPTS)}
    places = tuple(_place(f"{REFERENCES}[{number}]", row) for number, row in enumerate(rows[REFERENCES]))
    prompts = tuple(_prompt(f"{PROMPTS}[{number}]", row) for number, row in enumerate(rows[PROMPTS]))
    _check_prompts(prompts)
    return Plan(places, prompts)


def _read(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, character {error.colno}"
    except RecursionError:
        reason = "it is nested too deeply"
    except _Unreadable as error:
        raise ValueError(str(error)) from None
    except ValueError:  # Python refuses to read numbers of thousands of digits
        reason = "a number in it is too long"
    raise ValueError(f"The plan is not readable JSON ({reason}); write for example {EXAMPLE}.")


class _Unreadable(ValueError):
    """A complete sentence on something that is JSON to Python and to nobody else, or that says two things at once."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that names a field twice is refused, since programs differ in which of the two they take."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Unreadable(f"The plan says {_shown(name)} twice in one object; keep one of them.")
        found[name] = value
    return found


def _no_number(word: str) -> Any:
    raise _Unreadable(f"The plan holds {word}, which is no number; write one.")


def _objects(name: str, rows: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError(f"{name} is {_shown(rows)}, but must be a list in square brackets, for example [].")
    _check_count(name, rows)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{name}[{number}] is {_shown(row)}, but must be an object in braces.")
        yield row


def _check_count(name: str, rows: Sequence[Any]) -> None:
    if len(rows) > MOST_ENTRIES:
        raise ValueError(f"{name} has {len(rows)} entries, at most {MOST_ENTRIES} are allowed.")


def _check_names(where: str, row: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in row:
        if name not in known:
            raise ValueError(f"{where} has a field {_shown(name)}; known are {', '.join(known)}.")


def _place(where: str, row: Mapping[str, Any]) -> Strategy:
    _check_names(where, row, tuple(FIELDS))
    values = {FIELDS[name][0]: _number(f"{where}.{name}", name, value) for name, value in row.items()}
    return Strategy(**values)


def _number(where: str, name: str, value: Any, low: float | None = None) -> Any:
    """``value`` within the limits of its field, or from ``low`` on."""
    _, least, high = FIELDS[name]
    low = least if low is None else low
    whole = name != "strength"
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} is {_shown(value)}, but must be {kind} between {low:g} and {high:g}.")
    if not low <= value <= high or (whole and value != int(value)):
        nearest = min(max(value, low), high)
        nearest = int(nearest // 1) if whole else nearest
        raise ValueError(
            f"{where} is {_shown(value)}, but must be {kind} between {low:g} and {high:g}; the nearest good value is "
            f"{nearest:g}."
        )
    return int(value) if whole else float(value) + 0.0  # -0.0 is 0.0


def _prompt(where: str, row: Mapping[str, Any]) -> PromptPart:
    _check_names(where, row, PROMPT_FIELDS)
    text = row.get("text", "")
    if not isinstance(text, str):
        raise ValueError(f"{where}.text is {_shown(text)}, but must be text in quotation marks.")
    if "|" in text:
        raise ValueError(f"{where}.text contains '|', which separates segments; write the prompt without it.")
    if not is_printable(text):
        raise ValueError(f"{where}.text holds half a character ({_shown(text)}), which no encoder can read; delete it.")
    segment = _number(f"{where}.segment", "segment", row.get("segment", 0), low=0)
    return PromptPart(segment, text)


def _check_prompts(prompts: Sequence[PromptPart]) -> None:
    numbers = [part.first_segment for part in prompts]
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"prompts has two texts for segment {number}; keep one of them.")
    if numbers and 0 not in numbers:
        raise ValueError("prompts has no text for segment 0, but the first segment needs words of its own.")


def _shown(value: Any) -> str:
    """A value as JSON writes it, shortened; half characters are written out."""
    text = printable(json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")))
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
