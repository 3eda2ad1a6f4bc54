"""What a value is, as a digest: equal values give equal digests, in every process.

Numbers, text, tensors (bit for bit), containers, functions (their code, defaults and what they close over) and objects
(their class and attributes) are told apart by value. Whatever has no value that could be compared (a handle of a C
library, a generator) is named instead, and nothing made from it may be taken for anything else.
"""

from __future__ import annotations

import copyreg
import enum
import hashlib
import logging
import struct
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MAX_DEPTH = 80
MAX_VALUES = 1_000_000
PROTOCOL = 4
PACK = __name__.rsplit(".", 3)[0] + "."
"""Beginning of the names of this pack's modules; ComfyUI puts the folder it is installed in there."""

PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (Tensor, nn.Parameter)
BYTES_AT_ONCE = 1 << 26

Describe = Callable[[Any], Any]
"""Gives a simpler value that says all that counts about an object, or NotImplemented."""


@dataclass(frozen=True)
class Identity:
    """``digest`` in hexadecimal; ``unknown`` names what could not be identified (then the digest proves nothing)."""

    digest: str
    unknown: tuple[str, ...] = ()


class Unknown(Exception):
    """A value that cannot be identified; the text is where it was found and what it is."""


def identity(parts: Mapping[str, Any], describe: Describe = lambda value: NotImplemented) -> Identity:
    """The identity of named values; the order of the names does not count."""
    walk = _Walk(describe)
    digests = [(name, walk.digest(parts[name], name)) for name in sorted(parts)]
    unknown = tuple(dict.fromkeys(walk.unknown))
    return Identity(_joined("parts", *(item for name, digest in digests for item in (name, digest))).hex(), unknown)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The digest alone, for values that can all be identified. Raises ValueError where one cannot."""
    found = identity(parts)
    if found.unknown:
        raise ValueError(f"These values cannot be compared: {', '.join(found.unknown)}.")
    return found.digest


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of shape, dtype and every bit. Raises Unknown for a tensor without plain storage."""
    if type(tensor) not in PLAIN_TENSORS or tensor.layout != torch.strided or tensor.is_meta:
        raise Unknown(f"a {type(tensor).__qualname__} ({tensor.layout}, {tensor.device})")
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    step = max(1, BYTES_AT_ONCE // tensor.element_size())
    for start in range(0, flat.numel(), step):
        digest.update(flat[start : start + step].to("cpu").contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


class _Walk:
    """One walk over values. Digests are made from the leaves up, so that shared objects count as copies of them do."""

    def __init__(self, describe: Describe) -> None:
        self.describe = describe
        self.unknown: list[str] = []
        self._values = 0
        self._known: dict[int, bytes] = {}
        self._alive: list[Any] = []
        self._inside: list[int] = []

    def digest(self, value: Any, where: str) -> bytes:
        """Digest of a value; what cannot be identified is noted with the place where it was found."""
        plain = _plain(value)
        if plain is not None:
            return plain
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._inside:
            return _joined("inside", str(len(self._inside) - self._inside.index(id(value))))
        self._values += 1
        try:
            if self._values > MAX_VALUES or len(self._inside) > MAX_DEPTH:
                raise Unknown("too much to look at")
            self._inside.append(id(value))
            try:
                result = self._composed(value, where)
            finally:
                self._inside.pop()
        except (Unknown, RecursionError) as unknown:
            self.unknown.append(f"{where} ({unknown})")
            result = b"unknown"
        self._known[id(value)] = result
        self._alive.append(value)  # or another object could get its number
        return result

    def _composed(self, value: Any, where: str) -> bytes:
        described = self.describe(value)
        if described is not NotImplemented:
            return _joined("described", type(value).__qualname__, self.digest(described, where))
        if isinstance(value, Tensor):
            return tensor_digest(value) if type(value) in PLAIN_TENSORS else self._special_tensor(value, where)
        for kinds, method in _KINDS:
            if isinstance(value, kinds):
                return method(self, value, where)
        return self._object(value, where)

    def _special_tensor(self, value: Any, where: str) -> bytes:
        """A tensor made of others (quantised), or one with notes of its own."""
        if hasattr(value, "__tensor_flatten__"):
            names, context = value.__tensor_flatten__()
            parts = {**{name: getattr(value, name) for name in names}, "": context}
        else:
            parts = {**vars(value), "": value.as_subclass(Tensor)}
        return _joined(self.digest(type(value), where), repr(tuple(value.shape)), self.digest(parts, where))

    def _each(self, kind: str, values: Iterable[tuple[str, Any]], where: str) -> bytes:
        return _joined(kind, *(self.digest(value, f"{where}{name}") for name, value in values))

    def _mapping(self, value: Mapping[Any, Any], where: str) -> bytes:
        # In their order: wrappers and patches are applied in it.
        pairs = [(f"[{_short(key)}]", part) for key, item in value.items() for part in (key, item)]
        return _joined(self._each("mapping", pairs, where), self._rest(value, where))

    def _sequence(self, value: Any, where: str) -> bytes:
        kind = "tuple" if isinstance(value, tuple) else "list"
        items = ((f"[{number}]", item) for number, item in enumerate(value))
        return _joined(self._each(kind, items, where), self._rest(value, where))

    def _set(self, value: Any, where: str) -> bytes:
        return _joined("set", *sorted(self.digest(item, f"{where}{{}}") for item in value))

    def _function(self, value: types.FunctionType, where: str) -> bytes:
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, value.__dict__)
        named = zip((".code", ".defaults", ".defaults", ".closure", ""), parts, strict=True)
        return _joined("function", _module(value), value.__qualname__, self._each("parts", named, where))

    def _code(self, value: types.CodeType, where: str) -> bytes:
        return _joined("code", value.co_code, repr(value.co_names), self.digest(value.co_consts, where))

    def _method(self, value: types.MethodType, where: str) -> bytes:
        return self._each("method", ((".function", value.__func__), (".self", value.__self__)), where)

    def _builtin(self, value: types.BuiltinFunctionType, where: str) -> bytes:
        owner = value.__self__
        module = isinstance(owner, types.ModuleType) or owner is None
        return _joined("builtin", _module(value), value.__qualname__,
                       b"" if module else self.digest(owner, f"{where}.self"))  # fmt: skip

    def _class(self, value: type, where: str) -> bytes:
        name = _joined("class", _module(value), value.__qualname__)
        if "<locals>" not in value.__qualname__:
            return name
        own = {key: item for key, item in vars(value).items() if key in _WRITTEN or not key.startswith(("__", "_abc_"))}
        return _joined(name, self.digest(value.__bases__, where), self.digest(own, where))

    def _accessor(self, value: Any, where: str) -> bytes:
        functions = ("__func__", "fget", "fset", "fdel", "__wrapped__")
        return self._each("accessor", ((f".{name}", getattr(value, name, None)) for name in functions), where)

    def _object(self, value: Any, where: str) -> bytes:
        kind = type(value)
        if not _is_python(kind):
            return self._reduced(value, where)
        attributes = _attributes(value)
        items = [(f".{name}", part) for name in sorted(attributes) for part in (name, attributes[name])]
        return _joined("object", self.digest(kind, where), self._each("attributes", items, where))

    def _reduced(self, value: Any, where: str) -> bytes:
        """An object of a C library by what it tells its copies: how it is made again, and from what."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            recipe = reduce(value) if reduce else value.__reduce_ex__(PROTOCOL)
        except Exception as error:
            raise Unknown(f"a {type(value).__module__}.{type(value).__qualname__}") from error
        if isinstance(recipe, str):
            wrapped = self.digest(getattr(value, "__wrapped__", None), where)
            return _joined("named", _module(value), recipe, wrapped)
        parts = [list(part) if number > 2 and part is not None else part for number, part in enumerate(recipe)]
        return _joined("reduced", self.digest(type(value), where), self.digest(parts, where))

    def _rest(self, value: Any, where: str) -> bytes:
        """Class and attributes of a container that is more than one."""
        kind = type(value)
        if kind in (dict, list, tuple):
            return b""
        return _joined(self.digest(kind, where), self.digest(dict(sorted(_attributes(value).items())), where))


_KINDS: list[tuple[Any, Callable[[_Walk, Any, str], bytes]]] = [
    ((dict, types.MappingProxyType), _Walk._mapping),
    ((list, tuple), _Walk._sequence),
    ((set, frozenset), _Walk._set),
    (types.FunctionType, _Walk._function),
    (types.CodeType, _Walk._code),
    (types.MethodType, _Walk._method),
    (types.BuiltinFunctionType, _Walk._builtin),
    (type, _Walk._class),
    (weakref.ReferenceType, lambda walk, value, where: walk.digest(value(), where)),
    ((property, staticmethod, classmethod), _Walk._accessor),
]
_WRITTEN = ("__init__", "__call__")
_STATELESS = (types.ModuleType, logging.Logger, type(threading.Lock()), type(threading.RLock()))


def _plain(value: Any) -> bytes | None:
    """Digest of a value without parts; None for any other."""
    if value is None or value is Ellipsis or value is NotImplemented or isinstance(value, (bool, torch.dtype)):
        return _joined("constant", repr(value))
    if type(value) is str:
        return _joined("str", value)
    if type(value) is int:
        return _joined("int", hex(value))
    if type(value) is float:
        return _joined("float", struct.pack("<d", value))
    if type(value) in (bytes, bytearray):
        return _joined("bytes", bytes(value))
    if isinstance(value, enum.Enum):
        return _joined("enum", _module(type(value)), type(value).__qualname__, value.name)
    if isinstance(value, (torch.device, torch.layout, torch.memory_format, uuid.UUID)):
        return _joined("place", type(value).__name__)  # where and under which number, which changes no value
    if isinstance(value, _STATELESS):
        return _joined("stateless", type(value).__name__, getattr(value, "__name__", ""))
    return None


def _joined(*parts: str | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.digest()


def _module(value: Any) -> str:
    """Name of the module that something comes from, the same wherever this pack is installed."""
    return (getattr(value, "__module__", None) or "").removeprefix(PACK)


def _short(key: Any) -> str:
    return key if isinstance(key, str) else type(key).__name__ if not isinstance(key, (int, tuple)) else str(key)[:40]


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty cell"


def _is_python(kind: type) -> bool:
    """Whether attributes tell all about objects of a class: they have no room for anything a C library keeps there."""
    slots = sum(len(_slots(base)) for base in kind.__mro__)
    words = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ == 0 and kind.__basicsize__ <= object.__basicsize__ + words * struct.calcsize("P")


def _slots(kind: type) -> list[str]:
    """Attributes with a fixed place that a class declares, under the names by which they are reached."""
    declared = vars(kind).get("__slots__", ())
    names = (declared,) if isinstance(declared, str) else tuple(declared)
    own = f"_{kind.__name__.lstrip('_')}"
    return [
        f"{own}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        found.update((name, getattr(value, name)) for name in _slots(kind) if hasattr(value, name))
    return found
