"""The door every node stands behind: what comes in has been checked, what goes out can be read.

ComfyUI holds widgets against their limits, but not what arrives by wire, and switches its own check off for inputs that
``validate_inputs`` names. So the limits of the schema are enforced here, for every node, whenever it is asked anything.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from comfy_api.latest import io

from ..opensora_models.messages.printable import is_printable, printable
from ..opensora_models.messages.quoting import described, quoted
from ..opensora_models.native.core.wires import wrong_on_wire
from ..opensora_models.native.messages import hushed, speaking

THE_INPUT = re.compile(r"The input (\w+) ")
"""How sentences begin that name an input."""
GUARDED = "opensora_guarded"
"""Mark of a method that stands behind the door; ComfyUI copies classes with their methods at every run."""


class ChoiceInput(io.Combo.Input):
    """A menu that has had more entries: ``also`` are those that older graphs may hold and that still count.

    ComfyUI would refuse them by the list; a node with such an input names it in ``validate_inputs``.
    """

    def __init__(self, name: str, options: list[str], *, also: Sequence[str], default: str, tooltip: str) -> None:
        super().__init__(name, options=options, default=default, tooltip=tooltip)
        self.also = frozenset(also)


class OpenSoraNode(io.ComfyNode):
    """Base of all nodes.

    A subclass writes ``execute`` and, where it has rules over its inputs, ``validate_inputs`` (widgets that belong
    together; ComfyUI marks the one of them that :func:`guilty_input` names) and ``check_early``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, guard in (("execute", _guarded_execute), ("validate_inputs", _guarded_validation)):
            method = cls.__dict__.get(name)
            if isinstance(method, classmethod) and not hasattr(method.__func__, GUARDED):
                setattr(cls, name, classmethod(guard(method.__func__)))

    depends: ClassVar[frozenset[str]] = frozenset()
    """Numbers whose best value the others decide: the door names their limits and leaves a suggestion to the rule."""

    @classmethod
    def check_early(cls, **known: Any) -> None:
        """Refuse, with ValueError, what is wrong before the ``lazy`` inputs are computed; ``known`` are the others."""

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Asks for the costly inputs (``lazy`` in the schema) once everything else has been found right."""
        waiting = [entry.id for entry in schema_of(cls).inputs if entry.lazy and inputs.get(entry.id, "") is None]
        if waiting:
            known = {name: value for name, value in inputs.items() if name not in waiting}
            with readable_errors(), hushed():
                check_inputs(cls, known)
                cls.check_early(**known)
        return waiting


def schema_of(node: type[io.ComfyNode]) -> io.Schema:
    """The node's schema; choices that are files may be those of an earlier moment."""
    return node.SCHEMA or node.GET_SCHEMA()


def guilty_input(node: Any, sentence: str, marked: Sequence[str]) -> str | None:
    """Which of the inputs that ComfyUI has marked a sentence of ``validate_inputs`` is about; None for other nodes.

    The one that it names; a rule's sentence names none and is about the number that the others decide.
    """
    if not (isinstance(node, type) and issubclass(node, OpenSoraNode)):
        return None
    named = THE_INPUT.match(sentence)
    candidates = [*([named[1]] if named else []), *sorted(node.depends), *marked]
    return next(name for name in candidates if name in marked)


def check_inputs(node: type[OpenSoraNode], values: Mapping[str, Any]) -> None:
    """Hold values against the schema; ValueError with one sentence for the first that does not fit."""
    for entry in schema_of(node).inputs:
        if entry.id not in values:
            continue
        value = values[entry.id]
        if value is None and entry.optional and not isinstance(entry, io.WidgetInput):
            continue  # a wire that is not there; a widget always has a value
        problem = _problem(entry, value, suggest=entry.id not in node.depends)
        if problem is not None:
            raise ValueError(f"The input {entry.id} {problem}.")


def _problem(entry: io.Input, value: Any, *, suggest: bool) -> str | None:
    """What is wrong with a value, as the end of a sentence; None for a good one."""
    if value is None:
        return "got nothing: the node before it has none to give; connect another one"
    if isinstance(entry, (io.Int.Input, io.Float.Input)):
        return _number_problem(entry, value, suggest)
    if isinstance(entry, io.Combo.Input):
        return _choice_problem(entry, value)
    if isinstance(entry, io.String.Input):
        return _text_problem(value)
    if isinstance(entry, io.Autogrow.Input):
        return _grown_problem(entry, value)
    return wrong_on_wire(entry.get_io_type(), value)


def _number_problem(entry: io.Int.Input | io.Float.Input, value: Any, suggest: bool) -> str | None:
    whole = isinstance(entry, io.Int.Input)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"got {described(value)}, but needs a {'whole ' if whole else ''}number"
    low, high = entry.min, entry.max
    finite = math.isfinite(value)
    if finite and (not whole or value == int(value)) and _between(value, low, high) == value:
        return None
    good = _between(round(value) if whole else value, low, high) if finite else entry.default
    kind = "a whole number" if whole else "a number"
    limits = "" if low is None or high is None else f" between {low} and {high}"
    best = f"; the nearest good value is {good}" if suggest else ""
    return f"is {described(value)}, but must be {kind}{limits}{best}"


def _between(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(low, value)
    return value if high is None else min(high, value)


def _choice_problem(entry: io.Combo.Input, value: Any) -> str | None:
    options = entry.options or []
    if value in options or (isinstance(entry, ChoiceInput) and isinstance(value, str) and value in entry.also):
        return None
    if _names_a_file(entry):
        return None if isinstance(value, str) else f"got {described(value)}, but needs the name of a file"
    near = difflib.get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.0)
    best = f"; the nearest good value is {near[0]}" if near else ""
    return f"is {described(value)}, but must be one of {', '.join(map(str, options))}{best}"


def _names_a_file(entry: io.Combo.Input) -> bool:
    """Whether the choices are files, which come and go; the node itself looks for its file."""
    return bool(getattr(entry, "names_a_file", False))


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"got {described(value)}, but needs text"
    if not is_printable(value):
        return f"holds half a character ({described(printable(value))}), which no encoder can read; delete it"
    return None


def _grown_problem(entry: io.Autogrow.Input, value: Any) -> str | None:
    """What is wrong with the values of inputs that grow as they are connected; unconnected ones may be None."""
    if not isinstance(value, dict):
        return f"got {described(value)}, but needs one value for every input that is connected"
    kind = entry.template.input.get_io_type()
    problems = ((name, wrong_on_wire(kind, each)) for name, each in value.items() if each is not None)
    return next((f"at {name} {problem}" for name, problem in problems if problem is not None), None)


def _check_names(node: type[OpenSoraNode], signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    """Refuse inputs the node does not have: ComfyUI hands over whatever a prompt in API form connects."""
    if any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        return
    strange = next((name for name in given if name not in signature.parameters), None)
    if strange is None:
        return
    known = []
    for entry in schema_of(node).inputs:
        grows = isinstance(entry, io.Autogrow.Input)
        known += [f"{entry.id}.{name}" for name in entry.template.names] if grows else [entry.id]
    best = max(known, key=lambda name: difflib.SequenceMatcher(None, name, strange).ratio(), default="")
    raise ValueError(f"The node has no input {quoted(strange)}; the nearest name is {best}.")


def _guarded_execute(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def guarded(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        with readable_errors(), speaking():
            _check_names(cls, signature, kwargs)
            check_inputs(cls, signature.bind(cls, *args, **kwargs).arguments)
            return execute(cls, *args, **kwargs)

    setattr(guarded, GUARDED, True)
    return guarded


def _guarded_validation(validate: Callable[..., bool | str]) -> Callable[..., bool | str]:
    @functools.wraps(validate)
    def guarded(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> bool | str:
        values = inspect.signature(validate).bind(cls, *args, **kwargs).arguments
        # A linked input arrives as None; what it brings is checked when the node runs.
        known = {name: value for name, value in values.items() if name != "cls" and value is not None}
        try:
            check_inputs(cls, known)
            answer = validate(cls, *args, **kwargs)
        except ValueError as error:
            answer = str(error)
        return printable(answer) if isinstance(answer, str) else answer

    # ComfyUI reads the names of the inputs to validate off this signature, and does not look behind a wrapper.
    setattr(guarded, "__signature__", inspect.signature(validate))  # noqa: B010
    setattr(guarded, GUARDED, True)
    return guarded


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors leave with text that ComfyUI's log can write; one that quotes half characters is said anew."""
    try:
        yield
    except Exception as error:
        if is_printable("".join(traceback.format_exception(error))):
            raise
        raise ValueError(printable(error)) from None
