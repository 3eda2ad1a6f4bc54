"""Names of new files: what a prefix may be, what placeholders bring, and names that every system can store."""

from __future__ import annotations

import re
from datetime import datetime
from random import Random
from typing import Any

import pytest

from opensora.opensora_models.storage.output_names import MAX_PART_BYTES, check_prefix, output_name
from opensora.opensora_models.storage.placeholders import Placeholders

NOW = datetime(2024, 3, 7, 9, 5, 4)
PROMPT: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 42, "cfg": 7.0, "add": True}, "_meta": {"title": "First"}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 43}, "_meta": {"title": "Step 1.5"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "text": 'a/b\\c:d*e?f"g<h>i|j\nk'}},
    "6": {"class_type": "Linked", "inputs": {"seed": ["7", 0], "lost": ["5", 0]}},
    "7": {"class_type": "PrimitiveInt", "inputs": {"value": ["8", 0]}},
    "8": {"class_type": "PrimitiveInt", "inputs": {"value": 11}},
    "12:5": {"class_type": "Inner", "inputs": {"value": "in", "mode.strength": 0.5}, "_meta": {"title": "Deep"}},
}
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 4, "type": "KSampler", "properties": {"Node name for S&R": "KSampler"}},
        {"id": 3, "type": "KSampler", "properties": {"Node name for S&R": "KSampler"}},
        {"id": 12, "type": "box"},
        {"id": 20, "type": "PrimitiveNode", "title": "Width", "widgets_values": [512, "fixed"]},
        {
            "id": 21,
            "type": "SwitchedOff",
            "widgets_values": [7, "randomize", 20, "euler"],
            "inputs": [{"name": "model"}, *({"widget": {"name": name}} for name in ("seed", "steps", "how"))],
        },
        {"id": 22, "type": "Named", "widgets_values": {"text": "yes"}},
        {"id": 23, "type": "Strange", "widgets_values": [1, 2], "inputs": [{"widget": {"name": "a"}}, None, 3]},
    ],
    "definitions": {"subgraphs": [{"id": "box", "nodes": [{"id": 5, "properties": {"Node name for S&R": "Mine"}}]}]},
}


def name(prefix: str, **others: Any) -> str:
    """The whole name of a prefix within the graph above."""
    sources = {"prompt": PROMPT, "workflow": WORKFLOW, "size": (832, 480), "now": NOW}
    sources |= {"titles": {"EmptyLatentImage": "Empty Latent Image"}} | others
    return output_name(prefix, Placeholders(**sources).value).path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("yyyy-MM-dd", "2024-03-07"),
        ("yy-M-d", "24-3-7"),
        ("hhmmss", "090504"),
        ("h_m_s", "9_5_4"),
        ("yyyy/MM/dd", "2024/03/07"),
        ("hh:mm", "09_05"),
        ("yyy", "yyy"),
        ("yyyyyy", "202424"),
        ("yyyy.MM.dd", "2024.03.07"),
    ],
)
def test_dates_as_the_page_writes_them(pattern: str, expected: str) -> None:
    assert name(f"a_%date:{pattern}%_b") == f"a_{expected}_b"


@pytest.mark.parametrize(
    ("placeholder", "expected"),
    [
        ("First.seed", "42"),  # a title
        ("4.seed", "43"),  # an id
        ("KSampler.seed", "43"),  # the page's first node of that name, as its graph lists them
        ("Step 1.5.seed", "43"),  # a title with a dot
        ("Empty Latent Image.width", "640"),  # the title a node has until somebody gives it another
        ("First.cfg", "7"),
        ("First.add", "true"),
        ("Linked.seed", "11"),  # over two wires
        ("Mine.value", "in"),  # in a subgraph, by the page's name
        ("Deep.mode.strength", "0.5"),  # a widget with a dot
        ("Width.value", "512"),  # a primitive of the page, which no prompt holds
        ("SwitchedOff.steps", "20"),
        ("SwitchedOff.seed", "7"),
        ("Named.text", "yes"),
        ("EmptyLatentImage.text", "a_b_c_d_e_f_g_h_i_j_k"),
        ("width", "832"),
        ("height", "480"),
        ("year", "2024"),
        ("month", "03"),
        ("day", "07"),
        ("hour", "09"),
        ("minute", "05"),
        ("second", "04"),
    ],
)
def test_values_of_the_graph(placeholder: str, expected: str) -> None:
    assert name(f"clips/x_%{placeholder}%") == f"clips/x_{expected}"


def test_without_the_page_the_prompt_gives_the_names() -> None:
    assert name("%KSampler.seed%-%First.seed%-%Inner.value%", workflow=None) == "42-42-in"


STRANGE_GRAPHS = [None, [], "x", {"1": None}, {"1": {"inputs": [], "_meta": "x"}}, {1: {"inputs": {}}}]
STRANGE_PAGES: list[Any] = [
    None,
    [],
    {"nodes": {}, "definitions": []},
    {"nodes": [None, {"id": 1, "properties": 3, "type": []}], "definitions": {"subgraphs": [3, {"nodes": 4}]}},
    {"nodes": [{"id": [], "type": "A", "widgets_values": [[]], "inputs": [{"widget": {"name": []}}]}]},
    {"nodes": [{"type": "A", "widgets_values": 3}, {"type": "A", "widgets_values": ["x"], "inputs": {}}]},
]


@pytest.mark.parametrize("graph", STRANGE_GRAPHS, ids=range(len(STRANGE_GRAPHS)))
@pytest.mark.parametrize("page", STRANGE_PAGES, ids=range(len(STRANGE_PAGES)))
def test_strange_graphs_leave_placeholders_as_they_are(graph: Any, page: Any) -> None:
    assert name("a%A.b%", prompt=graph, workflow=page) == "a%A.b%"


def test_wires_in_a_loop_end() -> None:
    loop = {"1": {"class_type": "A", "inputs": {"value": ["2", 0]}}, "2": {"inputs": {"value": ["1", 0]}}}
    assert name("%A.value%", prompt=loop) == "%A.value%"


@pytest.mark.parametrize(
    "prefix", ["x%nothing%", "x%First.nothing%", "x%Nobody.seed%", "x%Linked.lost%", "x%dat:yyyy%", "x%Strange.a%"]
)
def test_unknown_placeholders_stay_and_are_told(prefix: str) -> None:
    made = output_name(prefix, Placeholders(prompt=PROMPT, workflow=WORKFLOW).value)
    assert made.path == prefix.replace(":", "_") and f"'{prefix[1:]}'" in made.notes[0]


def test_percent_signs_are_no_placeholders() -> None:
    made = output_name("100% of 50% %date:yyyy% %x", Placeholders(now=NOW).value)
    assert made.path == "100% of 50% 2024 %x" and made.notes == ()
    made = output_name("50%_x_%date:yyyy%_%no.x%_%no.y%", Placeholders(now=NOW).value)
    assert made.path == "50%_x_2024_%no.x%_%no.y%" and len(made.notes) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("..", "a/__/b"),
        (".", "a/_/b"),
        ("", "a/b"),
        ("con", "a/con_/b"),
        ("LPT1.txt", "a/LPT1_.txt/b"),
        ("end. . ", "a/end/b"),
        ("../../etc", "a/.._.._etc/b"),
        ("/", "a/_/b"),
        ("\x00\x1f\x7f\ud800", "a/____/b"),
        ("C:\\x", "a/C__x/b"),
        ("é" * 300, f"a/{'é' * 100}/b"),
    ],
)
def test_values_become_storable(value: str, expected: str) -> None:
    assert name("a/%N.v%/b", prompt={"1": {"class_type": "N", "inputs": {"v": value}}}) == expected


def test_two_values_cannot_make_a_way_out() -> None:
    prompt = {"1": {"class_type": "N", "inputs": {"v": ".", "none": ""}}}
    assert name("%N.v%%N.v%/x", prompt=prompt) == "__/x"
    assert name(".%N.v%/x", prompt=prompt) == "._/x"
    assert name("%N.none%/../x", prompt=prompt) == "x"
    assert name("%N.none%", prompt=prompt) == "opensora"


@pytest.mark.parametrize("typed", ["a:b", "what?", "line\nbreak", "folder./x", "aux/x", "nul.x"])
def test_a_typed_name_that_windows_refuses_is_changed_and_told(typed: str) -> None:
    made = output_name(typed, Placeholders().value)
    assert made.path != typed and repr(made.path)[1:-1] in made.notes[0]


BAD = {
    "../x": "leaves",
    "a/../../x": "leaves",
    "..\\x": "leaves",
    "/x": "leaves",
    "\\\\server\\share\\x": "leaves",
    "C:\\x": "leaves",
    "c:/x": "leaves",
    "": "names no file",
    "  ": "names no file",
    "/": "leaves",
    ".": "names no file",
    "a/..": "names no file",
    "a\0b": "NUL",
    "\0": "NUL|names no file",
    "x" * (MAX_PART_BYTES + 1): "bytes",
    "é" * MAX_PART_BYTES: "bytes",
    "/".join(["folder"] * 300): "bytes",
    f"%date:yyyy%/{'y' * 300}/%x%": "bytes",
}


@pytest.mark.parametrize("prefix", BAD, ids=range(len(BAD)))
def test_bad_prefixes_are_refused_and_the_named_value_is_good(prefix: str) -> None:
    with pytest.raises(ValueError, match=BAD[prefix]) as caught:
        check_prefix(prefix)
    sentence = str(caught.value)
    assert "\0" not in sentence and len(sentence) < 400 + MAX_PART_BYTES * 5
    good = re.search("the nearest good value is '(.*)'", sentence, re.DOTALL)
    assert good is not None
    check_prefix(good[1])
    with pytest.raises(ValueError, match=BAD[prefix]):
        output_name(prefix, Placeholders().value)


@pytest.mark.parametrize("prefix", [3, None, ["x"], b"x"])
def test_what_is_no_text_is_refused(prefix: object) -> None:
    with pytest.raises(ValueError, match="must be text"):
        check_prefix(prefix)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("x", "x"), ("a/b", "a/b"), ("a\\b", "a/b"), ("a//b/", "a/b"), ("./a/../b", "b"), ("a b", "a b"), (".x", ".x")],
)
def test_good_prefixes(prefix: str, expected: str) -> None:
    made = output_name(prefix, Placeholders().value)
    assert made.path == expected and made.notes == ()


PIECES = [
    *"ab.. /\\%:*?\n\0\x1f",
    "..",
    "é" * 70,
    "x" * 150,
    "con",
    "C:",
    "\ud800",
    "%A.v%",
    "%date:yyyy/MM%",
    "%no.no%",
    "%year%",
]


def test_any_text_makes_a_safe_name_or_is_refused_with_a_good_one() -> None:
    random = Random(7)
    made = refused = 0
    for _ in range(3000):
        prefix, value = ("".join(random.choices(PIECES, k=random.randrange(12))) for _ in range(2))
        prompt = {"1": {"class_type": "A", "inputs": {"v": value}}}
        try:
            parts = output_name(prefix, Placeholders(prompt=prompt).value).path.split("/")
            made += 1
        except ValueError as error:
            refused += 1
            good = re.search("the nearest good value is '(.*)'", str(error), re.DOTALL)
            assert good is not None, error
            check_prefix(good[1])
            continue
        for part in (*parts[:-1], f"{parts[-1]}_00001_.mp4"):
            assert part not in ("", ".", "..") and len(part.encode("utf-8")) <= MAX_PART_BYTES + len("_00001_.mp4")
            assert not re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', part) and part.split(".")[0].rstrip().lower() != "con"
        assert all(part == part.rstrip(" .") for part in parts[:-1])
    assert made > 500 and refused > 500
