"""What a value is: the same for equal values in every process, another for everything that could be told apart."""

from __future__ import annotations

import datetime
import enum
import functools
import operator
import re
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from opensora.opensora_models.storage.identity import fingerprint, identity
from support.processes import output, python

Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Settings:
    scale: float = 1.0
    names: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


class Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def method(self) -> None: ...
    def other(self) -> None: ...


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown: int, hidden: int) -> None:
        self.shown, self.__hidden = shown, hidden


class OwnList(list):
    pass


def closed(value: Any) -> Callable[[], Any]:
    return lambda: value


def default(value: Any) -> Callable[..., Any]:
    def function(x: Any = value, *, y: Any = 2) -> Any:
        return x, y

    return function


def local_class(value: Any) -> type:
    class Local:
        setting = value

        def get(self) -> Any:
            return value

    return Local


def circle(value: Any) -> list[Any]:
    made: list[Any] = [value]
    made.append({"again": made})
    return made


def filled(value: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "one": lambda: 1,
    "one as fraction of a float": lambda: 1.0,
    "next float": lambda: 1.0000000000000002,
    "minus zero": lambda: -0.0,
    "zero": lambda: 0.0,
    "not a number": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "huge": lambda: 10**5000,
    "text of one": lambda: "1",
    "bytes": lambda: b"1",
    "half a character": lambda: "\ud800",
    "empty text": lambda: "",
    "list": lambda: [1, 2],
    "list in list": lambda: [[1, 2]],
    "list split": lambda: [[1], [2]],
    "tuple": lambda: (1, 2),
    "own list": lambda: OwnList([1, 2]),
    "named pair": lambda: Pair(1, 2),
    "dict": lambda: {"a": 1, "b": 2},
    "dict in another order": lambda: {"b": 2, "a": 1},
    "dict of other keys": lambda: {"a": 2, "b": 1},
    "ordered dict": lambda: OrderedDict(a=1, b=2),
    "key of a tuple": lambda: {("a", 1): 1},
    "set": lambda: {"first", "second", "third", "fourth"},
    "frozen set": lambda: frozenset({"first", "second", "third"}),
    "fraction": lambda: Fraction(1, 3),
    "complex": lambda: 1 + 2j,
    "path": lambda: Path("a/b"),
    "date": lambda: datetime.datetime(2024, 1, 2),
    "pattern": lambda: re.compile("a+"),
    "other pattern": lambda: re.compile("a+", re.IGNORECASE),
    "range": lambda: range(3),
    "slice": lambda: slice(1, 2),
    "red": lambda: Colour.RED,
    "blue": lambda: Colour.BLUE,
    "dtype": lambda: torch.bfloat16,
    "other dtype": lambda: torch.float32,
    "dataclass": lambda: Settings(),
    "dataclass changed": lambda: Settings(scale=2.0),
    "dataclass, other part": lambda: Settings(names=("a",)),
    "object": lambda: Plain(a=1),
    "object changed": lambda: Plain(a=2),
    "object, other name": lambda: Plain(b=1),
    "object with a lock": lambda: Plain(lock=threading.Lock()),
    "slots": lambda: Slotted(1, 2),
    "slots changed": lambda: Slotted(2, 2),
    "hidden slot changed": lambda: Slotted(1, 3),
    "circle": lambda: circle(1),
    "other circle": lambda: circle(2),
    "function": lambda: closed,
    "other function": lambda: default,
    "closure": lambda: closed(1),
    "other closure": lambda: closed(2),
    "closure of a tensor": lambda: closed(torch.ones(2)),
    "default": lambda: default(1),
    "other default": lambda: default(2),
    "method": lambda: Plain(a=1).method,
    "method of another": lambda: Plain(a=2).method,
    "other method": lambda: Plain(a=1).other,
    "partial": lambda: functools.partial(closed, 1),
    "other partial": lambda: functools.partial(closed, 2),
    "cached": lambda: functools.lru_cache(closed),
    "other cached": lambda: functools.lru_cache(default),
    "builtin": lambda: len,
    "torch function": lambda: torch.sigmoid,
    "item getter": lambda: operator.itemgetter(1),
    "other item getter": lambda: operator.itemgetter(2),
    "class": lambda: Plain,
    "other class": lambda: Settings,
    "local class": lambda: local_class(1),
    "other local class": lambda: local_class(2),
    "object of a local class": lambda: local_class(1)(),
    "object of another local class": lambda: local_class(2)(),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor changed": lambda: torch.tensor([1.0, 2.0000002]),
    "tensor, minus zero": lambda: torch.tensor([-0.0, 2.0]),
    "tensor, zero": lambda: torch.tensor([0.0, 2.0]),
    "tensor of another shape": lambda: torch.tensor([[1.0, 2.0]]),
    "tensor of bf16": lambda: torch.tensor([1.0, 2.0]).bfloat16(),
    "tensor of fp16": lambda: torch.tensor([1.0, 2.0]).half(),
    "tensor of fp8": lambda: torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "tensor of booleans": lambda: torch.tensor([True, False]),
    "tensor of whole numbers": lambda: torch.tensor([1, 2]),
    "complex tensor": lambda: torch.tensor([1 + 2j]),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "scalar": lambda: torch.tensor(1.0),
    "empty tensor": lambda: torch.zeros(0, 3),
    "other empty tensor": lambda: torch.zeros(3, 0),
    "array": lambda: numpy.array([1.0, 2.0]),
    "array changed": lambda: numpy.array([1.0, 3.0]),
    "number of numpy": lambda: numpy.float64(1.0),
    "module": lambda: filled(1.0),
    "module changed": lambda: filled(2.0),
}


def test_equal_values_are_the_same_and_others_are_not() -> None:
    found: dict[str, str] = {}
    for name, make in VALUES.items():
        first, again = identity({"x": make()}), identity({"x": make()})
        assert first.unknown == (), name
        assert first == again, name
        assert first.digest not in found, f"{name} is {found[first.digest]}"
        found[first.digest] = name


def test_the_same_tensor_wherever_it_lies() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    parts = [whole.t().contiguous().t(), whole.clone(), torch.cat([whole, whole])[:3], nn.Parameter(whole)]
    digests = {fingerprint({"x": part}) for part in (whole, *parts)}
    assert len(digests) == 1
    assert fingerprint({"x": whole[:, ::2]}) == fingerprint({"x": whole[:, ::2].clone()})


def test_shared_objects_count_as_copies_do() -> None:
    part = {"a": [1.5]}
    assert identity({"x": [part, part]}) == identity({"x": [{"a": [1.5]}, {"a": [1.5]}]})


def test_names_do_not_run_into_values() -> None:
    parts = [{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": ["b", "c"]}, {"a": [["b"], "c"]}]
    assert len({fingerprint(each) for each in parts}) == len(parts)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"inner": [threading.local()]}, r"x\[inner\]\[0\] \(a _thread._local\)"),
        (Plain(stream=(n for n in range(3))), r"x.stream \(a builtins.generator\)"),
        (torch.zeros(2, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "sparse"),
        (memoryview(b"x"), "memoryview"),
        (functools.reduce(lambda inner, _: [inner], range(5000), []), "too much to look at"),
    ],
    ids=["of a thread", "generator", "meta", "sparse", "view", "deep"],
)
def test_what_has_no_value_is_named(value: Any, words: str) -> None:
    found = identity({"x": value, "y": 1})
    assert len(found.unknown) == 1 and re.search(words, found.unknown[0]), found
    with pytest.raises(ValueError, match="cannot be compared"):
        fingerprint({"x": value})


PRINT = """
sys.path.insert(0, sys.argv[1])
import test_identity as here
for name, make in here.VALUES.items():
    print(name, here.identity({"x": make()}).digest)
"""


def test_every_process_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    for seed in ("1", "2"):  # the order of sets of words differs
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        started.append(python(PRINT, Path(__file__).parent))
    first, second = (output(process).splitlines() for process in started)
    assert first == second and len(first) == len(VALUES)
