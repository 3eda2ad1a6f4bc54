"""Columns name inputs of a workflow: which input a column means, and whether a value fits it."""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client import Prompt
from ..console import Problem
from .table import Fault, Row, Table

NAMES_ONLY = "_"  # columns that begin with it are for file names alone
ALIASES = {"prompt": ("prompt", "text"), "seed": ("seed", "noise_seed")}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
PLAIN_KINDS: dict[str, type | tuple[type, ...]] = {"BOOLEAN": bool, "INT": int, "FLOAT": float, "STRING": str}
SHOWN = 60  # characters of a value in a sentence
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")


@dataclass(frozen=True)
class Target:
    """The input a column sets: the node's id, the input's name, and what the workflow has there."""

    node: str
    name: str
    default: Any


@dataclass(frozen=True)
class Upload:
    """A file of this machine that a server needs in its input folder."""

    node: str
    name: str
    path: Path


@dataclass
class Planned:
    """A row that can be queued: the values that change the workflow, and the files that have to be there."""

    row: Row
    values: dict[str, Any]
    uploads: list[Upload]


def read_workflow(path: Path) -> Prompt:
    """A workflow in API form; Problem for the form the page saves, and for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is no JSON: {error}.") from None
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise Problem(f"{path} is in the form the page saves; programs need the other: menu File, Export (API).")
    is_prompt = isinstance(content, dict) and content and all(map(_is_node, content.values()))
    if not is_prompt:
        raise Problem(f"{path} is no workflow in API form: an object of nodes with class_type and inputs.")
    workflow: Prompt = content
    for key, node in workflow.items():
        for name, value in node["inputs"].items():
            if _is_link(value) and str(value[0]) not in workflow:
                raise Problem(f"{path}: input {name} of node {key} comes from node {value[0]}, which is not there.")
    return workflow


def _is_node(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("class_type"), str) and isinstance(value.get("inputs"), dict)
    )


def find_targets(workflow: Prompt, columns: Mapping[str, int]) -> tuple[dict[str, Target], list[Fault]]:
    """The input of every column, and what is wrong with the columns, by the line each stands in."""
    targets: dict[str, Target] = {}
    faults: list[Fault] = []
    for column, line in columns.items():
        if column.startswith(NAMES_ONLY):
            continue
        try:
            targets[column] = _target(workflow, column)
        except Problem as problem:
            faults.append(Fault(line, f"{problem}"))
    owners: dict[tuple[str, str], str] = {}
    for column, target in targets.items():
        other = owners.setdefault((target.node, target.name), column)
        if other != column:
            faults.append(
                Fault(
                    columns[column], f"the columns {other!r} and {column!r} set the same input: leave one of them out."
                )
            )
    return targets, faults


def _target(workflow: Prompt, column: str) -> Target:
    title, name = _divided(workflow, column)
    nodes = _nodes_called(workflow, title) if title else list(workflow)
    if title and not nodes:
        titles = sorted({_title(node) for node in workflow.values()})
        raise Problem(f"column {column!r}: no node is called {title!r}{_nearest(title, titles)}.")
    for wanted in ALIASES.get(name, (name,)):
        free = [key for key in nodes if _is_free(workflow[key]["inputs"].get(wanted))]
        if len(free) > 1 and name == "prompt" and not title:
            free = _walked_back(workflow, free, wanted) or free
        if len(free) == 1:
            return Target(free[0], wanted, workflow[free[0]]["inputs"][wanted])
        if free:
            choices = " or ".join(_full_names(workflow, free, wanted))
            raise Problem(f"column {column!r}: {len(free)} nodes have this input; name one: {choices}.")
    if any(name in workflow[key]["inputs"] for key in nodes):
        raise Problem(f"column {column!r}: this input is wired to another node; set the input there.")
    known = {given for key in nodes for given, value in workflow[key]["inputs"].items() if _is_free(value)}
    owner = f"{title!r} has" if title else "no node has"
    raise Problem(f"column {column!r}: {owner} {'no' if title else 'an'} input {name!r}{_nearest(name, known)}.")


def _divided(workflow: Prompt, column: str) -> tuple[str, str]:
    """Title and input; both may have dots of their own, so the division that names an input is looked for."""
    dots = [place for place, character in enumerate(column) if character == "."]
    divisions = [("", column), *((column[:place], column[place + 1 :]) for place in reversed(dots))]
    for title, name in divisions:
        nodes = _nodes_called(workflow, title) if title else list(workflow)
        if any(each in workflow[key]["inputs"] for key in nodes for each in ALIASES.get(name, (name,))):
            return title, name
    return divisions[1] if dots else divisions[0]


def _nodes_called(workflow: Prompt, title: str) -> list[str]:
    """By id, else by title, else by class."""
    if title in workflow:
        return [title]
    named = [key for key, node in workflow.items() if _title(node) == title]
    return named or [key for key, node in workflow.items() if node["class_type"] == title]


def _title(node: Mapping[str, Any]) -> str:
    return str((node.get("_meta") or {}).get("title") or node["class_type"])


def _full_names(workflow: Prompt, keys: list[str], name: str) -> list[str]:
    """``Title.input``, or ``id.input`` where two nodes have the same title."""
    titles = [_title(node) for node in workflow.values()]
    return [f"{_title(workflow[key]) if titles.count(_title(workflow[key])) == 1 else key}.{name}" for key in keys]


def _walked_back(workflow: Prompt, keys: list[str], name: str) -> list[str]:
    """Those of ``keys`` from which a wire leads to an input ``positive`` and none to ``negative``."""
    behind = {side: _behind(workflow, side) for side in ("positive", "negative")}
    return [key for key in keys if key in behind["positive"] - behind["negative"]]


def _behind(workflow: Prompt, side: str) -> set[str]:
    """All nodes from which wires lead to an input of this name."""
    links = [node["inputs"].get(side) for node in workflow.values()]
    open_keys = [str(link[0]) for link in links if not _is_free(link) and link]
    found: set[str] = set()
    while open_keys:
        key = open_keys.pop()
        if key in workflow and key not in found:
            found.add(key)
            open_keys += [str(value[0]) for value in workflow[key]["inputs"].values() if _is_link(value)]
    return found


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _is_free(value: Any) -> bool:
    """A value that stands in the node itself; wires are lists."""
    return value is not None and not isinstance(value, list)


def _nearest(given: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(given, names, 1, 0.5)
    if near:
        return f"; did you mean {near[0]!r}"
    return f"; there are {', '.join(names[:12])}{' …' if len(names) > 12 else ''}" if names else ""


def plan_rows(
    workflow: Prompt, table: Table, folder: Path, object_info: Mapping[str, Any]
) -> tuple[list[Planned], list[Fault]]:
    """Every row with its values as the inputs take them, and all that is wrong with the table, by line.

    ``folder`` is where paths of files start; ``object_info`` is what a server tells of its nodes.
    """
    faults = list(table.faults)
    for kind in sorted({node["class_type"] for node in workflow.values()} - set(object_info)):
        faults.append(Fault(0, f"the workflow has a node {kind}, and the server does not know it."))
    targets, wrong = find_targets(workflow, table.columns)
    faults += wrong
    planned = []
    for row in table.rows:
        plan = Planned(row, {}, [])
        for column, value in row.values.items():
            if column not in targets:
                continue
            try:
                plan.values[column] = _fitted(workflow, targets[column], value, folder, object_info, plan)
            except ValueError as error:
                faults.append(Fault(row.line, f"{column}: {error}"))
        planned.append(plan)
    return planned, sorted(faults)


def _fitted(
    workflow: Prompt, target: Target, value: Any, folder: Path, object_info: Mapping[str, Any], plan: Planned
) -> Any:
    kind, options = _declared(object_info, workflow[target.node]["class_type"], target.name)
    if isinstance(kind, list):
        return _chosen(kind, options, target, value, folder, plan)
    return _number_in(_converted(kind, target.default, value), options)


def _declared(object_info: Mapping[str, Any], node: str, name: str) -> tuple[Any, dict[str, Any]]:
    """What the server says of an input: its type (a list of choices for a menu) and its options."""
    groups = (object_info.get(node) or {}).get("input") or {}
    for group in groups.values():
        if isinstance(group, dict) and name in group:
            declared = group[name]
            options = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
            kind = declared[0]
            return (options.get("options", []), options) if kind == "COMBO" else (kind, options)
    return None, {}


def _chosen(
    choices: list[Any], options: dict[str, Any], target: Target, value: Any, folder: Path, plan: Planned
) -> Any:
    """A value of a menu, or a file that becomes one by being sent to the server."""
    for choice in choices:
        if choice == value or str(choice) == str(value):
            return choice
    takes_files = any(options.get(flag) for flag in UPLOADS)
    if takes_files and _is_file(folder / str(value)):
        plan.uploads.append(Upload(target.node, target.name, (folder / str(value)).resolve()))
        return str(value)
    if takes_files:
        raise ValueError(
            f"{_shown(value)} is no file of {folder} and none of the server's{_nearest(str(value), map(str, choices))}."
        )
    if options.get("remote") or (not choices and isinstance(value, str)):
        return value  # a menu that fills itself later
    raise ValueError(f"{_shown(value)} is not in the menu{_nearest(str(value), map(str, choices))}.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a cell may hold what no system takes for a path
        return False


def _converted(kind: Any, default: Any, value: Any) -> Any:
    """The value in the type of the input: as the server declares it, else as the workflow has it."""
    kind = (
        kind if kind in PLAIN_KINDS else next((name for name, of in PLAIN_KINDS.items() if isinstance(default, of)), "")
    )
    if kind == "BOOLEAN":
        truth = value if isinstance(value, bool) else TRUTHS.get(str(value).strip().lower())
        if truth is None:
            raise ValueError(f"{_shown(value)} is neither true nor false.")
        return truth
    if kind in ("INT", "FLOAT"):
        return _number(value, kind == "INT")
    if kind == "STRING":
        if isinstance(value, (dict, list)):
            raise ValueError(f"this input takes text, not {_shown(value)}.")
        return str(value)
    return value


def _shown(value: Any) -> str:
    """A value in a sentence; a cell may hold a book."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _number(value: Any, whole: bool) -> int | float:
    what = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{_shown(value)} is not {what}.")
    try:
        return int(value) if whole and not isinstance(value, float) else _finite(value, whole)
    except (ValueError, OverflowError):
        try:
            number = _finite(value, whole)
        except (ValueError, OverflowError):
            near = ""
            if whole and isinstance(value, (str, float)) and _is_number(value):
                near = f"; the nearest is {round(float(value))}"
            raise ValueError(f"{_shown(value)} is not {what}{near}.") from None
        return number


def _finite(value: int | float | str, whole: bool) -> int | float:
    number = float(value)
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise ValueError
    return int(number) if whole else number


def _is_number(value: str | float) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _number_in(value: Any, options: Mapping[str, Any]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    for bound, name in (("min", "least"), ("max", "most")):
        limit = options.get(bound)
        if limit is not None and (value < limit if bound == "min" else value > limit):
            raise ValueError(f"{value} is out of range; the {name} is {limit}.")
    return value


def filled(workflow: Prompt, targets: Mapping[str, Target], values: Mapping[str, Any]) -> Prompt:
    """The workflow with the row's values in it."""
    prompt = copy.deepcopy(workflow)
    for column, value in values.items():
        prompt[targets[column].node]["inputs"][targets[column].name] = value
    return prompt
