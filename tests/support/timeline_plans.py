"""Random plans for timelines, and the many ways to write the same one.

``tests/timeline/write_cases.py`` writes ``tests/timeline/cases.json``, which the tests in Python and in JavaScript
share. What a text means is known from how it was made, not from a parser.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CASES = Path(__file__).parents[1] / "timeline" / "cases.json"
COUNT, SEED = 200, 25
DEFAULTS = {"reference": 0, "at": 0, "length": 1, "from": 0, "strength": 0, "segment": 0}
STRATEGY_ORDER = ("segment", "reference", "from", "at", "length", "strength")
WORDS = ("a forest", "the sea at night", 'she says "go"', "line one\nline two", "ein Wald, grün", "a \\ b", "海 🌊", "")


def random_plan(rng: random.Random) -> dict[str, Any]:
    """References and prompts, every field written out."""
    references = [
        {
            "reference": rng.randrange(20),
            "at": rng.randint(-40, 300),
            "length": rng.randint(1, 40),
            "from": rng.choice([0, 0, rng.randint(-20, 20)]),
            "strength": rng.choice([0, 1, round(rng.random(), rng.choice([1, 2, 3]))]),
            "segment": rng.choice([0, 0, 0, -1, rng.randrange(6)]),
        }
        for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 5]))
    ]
    for reference in references:  # 1.0 and 0.0 are the whole numbers 1 and 0
        if reference["strength"] == int(reference["strength"]):
            reference["strength"] = int(reference["strength"])
    later = sorted(rng.sample(range(1, 12), rng.choice([0, 1, 3])))
    prompts = [{"segment": number, "text": rng.choice(WORDS)} for number in [0, *later]] if rng.random() < 0.6 else []
    return {"references": references, "prompts": prompts}


def written(plan: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """The plan as somebody may have typed it, and the notation used."""
    if not plan["prompts"] and rng.random() < 0.4:
        return ";".join(_group(each, rng) for each in plan["references"]), "strategy" if plan["references"] else "json"
    lists = {name: [_shuffled(row, rng) for row in rows] for name, rows in plan.items() if rows or rng.random() < 0.3}
    if rng.random() < 0.3:
        lists = dict(reversed(lists.items()))
    text = json.dumps(
        lists,
        indent=rng.choice([None, None, 1, 2, "\t"]),
        ensure_ascii=rng.random() < 0.5,
        separators=rng.choice([(",", ":"), (", ", ": "), (" , ", " : ")]),
    )
    around = ["", "\n", "  ", "\ufeff", "\u00a0", "\x85"]
    return rng.choice(around) + text + rng.choice(around), "json"


def _shuffled(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Fields in any order, those with their default perhaps left away."""
    names = [name for name in row if "text" in row or row[name] != DEFAULTS[name] or rng.random() < 0.5]
    rng.shuffle(names)
    return {name: row[name] for name in names}


def _group(reference: dict[str, Any], rng: random.Random) -> str:
    fields = [str(reference[name]) for name in STRATEGY_ORDER]
    while len(fields) > 1 and reference[STRATEGY_ORDER[len(fields) - 1]] == DEFAULTS[STRATEGY_ORDER[len(fields) - 1]]:
        if rng.random() < 0.3:
            break
        fields.pop()
    return ",".join(rng.choice(["", "", " "]) + field for field in fields)


NEITHER = (
    'The plan is neither JSON, for example {{"references": [{{"reference": 0, "at": 0}}]}}, nor a mask strategy, for '
    "example 0,0,0,0;0,1,0,-1; it begins with {}."
)
WRONG: dict[str, str | None] = {
    "[]": 'The plan is [], but must be one object in braces, for example {"references": [{"reference": 0, "at": 0}]}.',
    '{"reference": []}': 'The plan has a field "reference"; known are references, prompts.',
    '{"references": {}}': "references is {}, but must be a list in square brackets, for example [].",
    '{"references": [1]}': "references[0] is 1, but must be an object in braces.",
    '{"references": [{}, {"att": 3}]}': 'references[1] has a field "att"; known are reference, at, length, from, '
    "strength, segment.",
    '{"references": [{"at": "3"}]}': 'references[0].at is "3", but must be a whole number between -10000 and 10000.',
    '{"references": [{"at": true}]}': "references[0].at is true, but must be a whole number between -10000 and 10000.",
    '{"references": [{"at": 1.5}]}': "references[0].at is 1.5, but must be a whole number between -10000 and 10000; "
    "the nearest good value is 1.",
    '{"references": [{"length": 0}]}': "references[0].length is 0, but must be a whole number between 1 and 10000; the "
    "nearest good value is 1.",
    '{"references": [{"strength": -0.5}]}': "references[0].strength is -0.5, but must be a number between 0 and 1; the "
    "nearest good value is 0.",
    '{"references": [{"at": 1, "at": 2}]}': 'The plan says "at" twice in one object; keep one of them.',
    '{"references": [{"strength": NaN}]}': "The plan holds NaN, which is no number; write one.",
    '{"prompts": [{"segment": 0, "text": 5}]}': "prompts[0].text is 5, but must be text in quotation marks.",
    '{"prompts": [{"segment": 1, "text": "a"}]}': "prompts has no text for segment 0, but the first segment needs "
    "words of its own.",
    '{"prompts": [{"text": "a"}, {"text": "b"}]}': "prompts has two texts for segment 0; keep one of them.",
    '{"prompts": [{"text": "a|b"}]}': "prompts[0].text contains '|', which separates segments; write the prompt "
    "without it.",
    '{"prompts": [{"segment": -1, "text": "a"}]}': "prompts[0].segment is -1, but must be a whole number between "
    "0 and 999; the nearest good value is 0.",
    "0;0,0,0,0,0": "The length of group 1 of the mask strategy is 0, but must be a whole number between 1 and 10000; "
    "the nearest good value is 1.",
    '{"prompts": [{"text": "a \\ud800"}]}': 'prompts[0].text holds half a character ("a \\ud800"), which no encoder '
    "can read; delete it.",
    '{"references": 1e999}': "references is Infinity, but must be a list in square brackets, for example [].",
    '{"references": [{"at": -1e999}]}': "references[0].at is -Infinity, but must be a whole number between -10000 and "
    "10000; the nearest good value is -10000.",
    '{"references": [{"__proto__": 1}]}': 'references[0] has a field "__proto__"; known are reference, at, length, '
    "from, strength, segment.",
    "hello": NEITHER.format('"hello"'),
    "```json\n{}\n```": NEITHER.format('"```json\\n{}\\n```"'),
    "０，０": NEITHER.format('"０，０"'),
    '"' * 60: NEITHER.format('"' + '\\"' * 19 + "\\…"),
    "0;0," + "x" * 9000: None,
    "0," * 9000: None,
    '{"references": [': None,
    '{"references": [],}': None,
    '{"references": []} x': None,
    "{'references': []}": None,
    '{"references": [{"at": 01}]}': None,
    "0;0,x": None,
    "0;0,1,2,3,4,0,6": None,
    ";": None,
}
"""Texts that are refused, with the sentence; None where each program words it in its own way."""


def random_placing(rng: random.Random) -> dict[str, Any]:
    """References of a single clip and the clip they go into; what comes of it is added by the writer."""
    lengths, clip = [rng.choice([1, 5, 9, 10]) for _ in range(4)], rng.choice([5, 9, 15, 20, 33])
    references = []
    for _ in range(rng.randint(1, 5)):
        number = rng.randrange(4)
        references.append(
            {
                **DEFAULTS,
                "reference": number,
                "at": rng.randint(-clip, clip - 1),
                "length": rng.randint(1, 12),
                "from": rng.randint(-lengths[number], lengths[number] - 1),
                "strength": rng.choice([0, 0.3]),
            }
        )
    return {"references": references, "lengths": lengths, "clip": clip, "align": rng.choice([None, 5])}


def random_use(rng: random.Random, releases: Sequence[str]) -> dict[str, Any]:
    """References of a single clip of a release, at the clip's ends more often than between them."""
    release, clip = rng.choice(releases), rng.choice([1, 2, 5, 9, 17, 33])
    lengths = [rng.choice([1, 1, 5, 8, 9, 16, 17]) for _ in range(3)]
    references = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        number = rng.randrange(3)
        length = min(clip, rng.choice([1, lengths[number]]))
        at = rng.choice([0, -length, rng.randint(0, clip - 1)])
        references.append({**DEFAULTS, "reference": number, "at": at, "length": length})
    return {"release": release, "references": references, "lengths": lengths, "clip": clip}


def cases(releases: Sequence[str]) -> dict[str, Any]:
    """What the file holds; ``releases`` by their ids."""
    rng = random.Random(SEED)
    good = []
    for _ in range(COUNT):
        plan = random_plan(rng)
        text, notation = written(plan, rng)
        good.append({"text": text, "notation": notation, **plan})
    placed = [random_placing(rng) for _ in range(60)]
    return {
        "good": good,
        "wrong": [{"text": text, "sentence": sentence} for text, sentence in WRONG.items()],
        "placed": placed,
        "used": [random_use(rng, releases) for _ in range(60)],
    }


def dumped(found: dict[str, Any]) -> str:
    """One case a line."""
    blocks = [f'"{name}": [\n' + ",\n".join(json.dumps(each) for each in rows) + "\n]" for name, rows in found.items()]
    return "{" + ",\n".join(blocks) + "}\n"
