"""Compares the project's own modules with recorded outputs of the original Open-Sora.

A *case* is one ``.safetensors`` file (tensors ``in.*``, ``out.*``, ``state.*`` and a JSON text ``case`` in the
metadata) or one ``.json`` table of input/output pairs. Families register here; the comparison itself is done in
this file, so that no family can call itself equal. What a case is follows from its description, never from its file
name, and every file gives at least one result: a case that cannot be run fails with the reason.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

# Cases are recorded with tolerances of about 30 times the original's own rounding. Some are so badly conditioned
# (norms over two values) that another order of the same float32 sums is farther away, by luck up to this many times.
ROUNDING = 100.0


@dataclass(frozen=True)
class Case:
    """One recorded computation: its description and its tensors."""

    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def family(self) -> str:
        return str(self.info.get("family"))

    @property
    def kind(self) -> str | None:
        return self.info.get("kind")

    @property
    def root(self) -> str | None:
        """The original's class whose numbers were recorded, where the description names one."""
        return self.info.get("root_module")

    @property
    def config(self) -> Any:
        return self.info.get("config") or {}

    @property
    def dtype(self) -> torch.dtype:
        """What the module was cast to; float32 unless the description says otherwise."""
        return getattr(torch, self.info.get("dtype") or "float32")

    def input(self, name: str) -> Tensor | None:
        """The tensor ``in.<name>``, or None where the case has none."""
        return self.tensors.get(f"in.{name}")

    def need(self, name: str) -> Tensor:
        """The tensor ``in.<name>``; ValueError where the case has none."""
        value = self.input(name)
        if value is None:
            raise ValueError(f"the case has no in.{name}")
        return value

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with ``prefix``, keyed by the rest of the name."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    @property
    def expected(self) -> dict[str, Tensor]:
        return self.with_prefix("out.")

    def computed(self, makers: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """The outputs this case records, each by its maker; the other makers, whose inputs may be missing, rest."""
        return {name: make() for name, make in makers.items() if name in self.expected}


@dataclass(frozen=True)
class Row:
    """One line of a JSON table: what was computed, what was recorded, and how far apart they may be."""

    label: str
    got: Any
    want: Any
    tolerance: float = 0.0


@dataclass(frozen=True)
class Result:
    """Outcome of one case.

    ``worst`` is the largest error divided by its tolerance; infinite where the case could not be run, None where no
    module of the project is registered for its family or table. ``detail`` says why.
    """

    name: str
    worst: float | None
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.worst is not None and self.worst <= 1.0


Outputs = Mapping[str, Tensor]
CaseRunner = Callable[[Case], "Outputs | Sequence[Outputs]"]
"""Recomputes the ``out.*`` tensors; several mappings are several ways to compute them, which all must be right."""
TableRunner = Callable[[Any], Iterable[Row]]

_families: set[str] = set()
_case_runners: list[tuple[Callable[[Case], bool], CaseRunner]] = []
_table_runners: dict[str, dict[str, TableRunner]] = {}


def runs_cases(accepts: Callable[[Case], bool], *families: str) -> Callable[[CaseRunner], CaseRunner]:
    """Register a function for the cases it accepts, of ``families`` only where any are named.

    A case of a family that was named once and that no function accepts is a failure.
    """

    def register(run: CaseRunner) -> CaseRunner:
        _families.update(families)
        _case_runners.append((lambda case: (not families or case.family in families) and accepts(case), run))
        return run

    return register


def runs_table(stem: str, *sections: str) -> Callable[[TableRunner], TableRunner]:
    """Register a function for the JSON table ``stem``: the one whose file name, ``name`` or ``kind`` starts with it.

    ``sections`` is the path of keys to the part of the table the function takes (``"v1.2", "latent_size"``).
    """

    def register(run: TableRunner) -> TableRunner:
        _table_runners.setdefault(stem, {})["/".join(sections)] = run
        return run

    return register


def fill_by_rule(module: nn.Module, case: Case, key_of: Callable[[str], str] = lambda key: key) -> None:
    """Give ``module`` the weights of rule ``crc32-randn-v1``; ``key_of`` maps our key to the original's."""
    module.load_state_dict(weights_by_rule(module.state_dict(), case, key_of), strict=True)


def weights_by_rule(
    entries: Mapping[str, Tensor], case: Case, key_of: Callable[[str], str] = lambda key: key
) -> dict[str, Tensor]:
    """Values for every entry: integers stay, ``state.<key>`` wins, the rest follows the rule in float32."""
    filled: dict[str, Tensor] = {}
    for ours, entry in entries.items():
        key = key_of(ours)
        if not entry.is_floating_point():
            filled[ours] = entry
        elif f"state.{key}" in case.tensors:
            filled[ours] = case.tensors[f"state.{key}"].reshape(entry.shape).to(entry.dtype)
        else:
            filled[ours] = _random_entry(key, tuple(entry.shape), _norm_names(case))
    _check_probe(filled, case, key_of)
    return filled


def _norm_names(case: Case) -> tuple[str, ...]:
    """How the keys of norm weights end; the cases of 2.0 count ``scale`` among them."""
    return ("weight", "scale") if case.family.startswith("v2-") else ("weight",)


def _random_entry(key: str, shape: tuple[int, ...], norms: tuple[str, ...]) -> Tensor:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode("utf-8"))))
    if value.ndim > 1:
        return value / math.sqrt(value.numel() / value.shape[0])
    return 1 + 0.1 * value if key.endswith(norms) else 0.1 * value


def _check_probe(filled: Mapping[str, Tensor], case: Case, key_of: Callable[[str], str]) -> None:
    """Wrong key translation shows here first, not as a puzzling difference of outputs."""
    probe = case.info.get("state_dict", {}).get("weight_probe_first_values", {})
    by_original = {key_of(ours): value for ours, value in filled.items()}
    for key, first in probe.items():
        if key in by_original:
            torch.testing.assert_close(
                by_original[key].flatten()[: len(first)], torch.tensor(first), atol=1e-6, rtol=1e-5, msg=f"weight {key}"
            )


def load_case(path: Path) -> Case:
    """Read one ``.safetensors`` case; ValueError where it describes none."""
    with safe_open(str(path), "pt") as file:
        text = (file.metadata() or {}).get("case")
        if text is None:
            raise ValueError("the metadata has no entry 'case'")
        info = json.loads(text)
        if not isinstance(info, dict):
            raise ValueError(f"the entry 'case' is a {type(info).__name__}, not a dictionary")
        keys = file.keys()  # not iterable itself
        return Case(path.stem, info, {key: file.get_tensor(key) for key in keys})


def case_files(folder: Path) -> list[Path]:
    """Every case and table below ``folder``, in a stable order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".json"})


def run_file(path: Path) -> Iterator[Result]:
    """Run one case (one result) or one table (one result per section)."""
    try:
        loaded: Any = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else load_case(path)
    except Exception as error:  # a broken file must not hide the results of the others
        yield _failure(path.name, error)
        return
    if isinstance(loaded, Case):
        yield _run_case(loaded)
    else:
        yield from _run_table(path, loaded)


def _failure(name: str, error: Exception) -> Result:
    if isinstance(error, KeyError):
        return Result(name, math.inf, f"the description has no {error}")
    return Result(name, math.inf, f"{type(error).__name__}: {error}".splitlines()[0])


def _run_case(case: Case) -> Result:
    try:
        run = next((run for accepts, run in _case_runners if accepts(case)), None)
        if run is not None:
            with torch.no_grad():
                return _unless_rounding(case, run, _compare_case(case, run(case)))
    except Exception as error:  # a broken family must not hide the results of the others
        return _failure(case.name, error)
    if case.family not in _families:
        return Result(case.name, None, f"no module registered for family {case.family!r}")
    what = " ".join(str(value) for value in (case.info.get("version"), case.root, case.kind) if value)
    return Result(case.name, math.inf, f"no module registered for {what or 'such a case'} of family {case.family!r}")


def _unless_rounding(case: Case, run: CaseRunner, result: Result) -> Result:
    """A result that is a little off is right where the same computation in float64 equals what was recorded."""
    if result.passed or result.worst is None or result.worst > ROUNDING or case.dtype != torch.float32:
        return result
    try:
        exact = _compare_case(case, run(replace(case, info={**case.info, "dtype": "float64"})))
    except (RuntimeError, ValueError):  # not every layer takes float64
        return result
    said = f"{exact.detail} in float64; {result.worst:.1f} tolerances away in float32, by rounding"
    return Result(case.name, exact.worst, said) if exact.passed else result


def _compare_case(case: Case, got: Outputs | Sequence[Outputs]) -> Result:
    expected, ways = case.expected, [got] if isinstance(got, Mapping) else list(got)
    missing = sorted(set(expected) - set(ways[0]))
    if missing or not expected:
        return Result(case.name, math.inf, f"nothing computed for {missing or 'any output'}")
    errors = [
        (*_error_ratio(case, name, way[name], want), name)
        for way in ways
        for name, want in expected.items()
        if name in way
    ]
    ratio, reason, name = max(errors, key=lambda error: error[0])
    return Result(case.name, ratio, f"{len(expected)} tensors, worst out.{name}{reason}")


def _error_ratio(case: Case, name: str, got: Tensor, want: Tensor) -> tuple[float, str]:
    """Largest error divided by its tolerance, and the reason where it is infinite."""
    if tuple(got.shape) != tuple(want.shape):
        return math.inf, f": {list(got.shape)} instead of {list(want.shape)}"
    if not want.is_floating_point():
        return (0.0, "") if torch.equal(got.to(want.dtype), want) else (math.inf, ": other values")
    a, b = got.detach().double(), want.double()
    same_special = (a == b) | (a.isnan() & b.isnan())
    if not bool((a.isfinite() | same_special).all()):
        return math.inf, ": not finite"
    a, b = a.masked_fill(same_special, 0.0), b.masked_fill(same_special, 0.0)
    rules = case.info["tolerances"]
    rules = rules.get("per_tensor", {}).get(f"out.{name}", rules)
    if "rel_l2" in rules:
        return float((a - b).norm() / want.double().norm().clamp_min(1e-30)) / rules["rel_l2"], ""
    atol = rules.get("atol_per_output", {}).get(f"out.{name}", rules["atol"])
    error, allowed = (a - b).abs(), atol + rules.get("rtol", 0.0) * b.abs()
    return (float(torch.where(error == 0, 0.0, error / allowed).max()) if a.numel() else 0.0), ""


def _run_table(path: Path, data: Any) -> Iterator[Result]:
    runners = _runners_of_table(path, data)
    if runners is None:
        yield Result(path.name, None, f"no module registered for table {path.stem!r}")
        return
    sections = list(_sections(data, runners))
    for section, part in sections:
        name = f"{path.name}:{section}" if section else path.name
        run = runners.get(section)
        if run is None:
            yield Result(name, math.inf, "no module registered for this section")
            continue
        try:
            yield _compare_rows(name, list(run(part)))
        except Exception as error:
            yield _failure(name, error)
    if not sections:
        yield Result(path.name, math.inf, "no rows found")


def _runners_of_table(path: Path, data: Any) -> dict[str, TableRunner] | None:
    """The functions of the registered table that this one is called after, the longest name first."""
    named = data if isinstance(data, dict) else {}
    for name in (path.stem, named.get("name"), named.get("kind")):
        for stem in sorted(_table_runners, key=len, reverse=True):
            if isinstance(name, str) and name.startswith(stem):
                return _table_runners[stem]
    return None


def _sections(data: Any, known: Mapping[str, TableRunner], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk down to the registered parts and to lists of rows; each is one section, named by the keys to it."""
    if prefix in known or (isinstance(data, list) and data and isinstance(data[0], dict)):
        yield prefix, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _sections(value, known, f"{prefix}/{key}" if prefix else key)


def _compare_rows(name: str, rows: list[Row]) -> Result:
    if not rows:
        return Result(name, math.inf, "no row compared")
    worst, detail = 0.0, f"{len(rows)} rows"
    for row in rows:
        ratio = _row_ratio(row.got, row.want, row.tolerance)
        if ratio > worst:
            worst = ratio
            if ratio > 1:
                detail = f"{row.label}: got {row.got!r}, recorded {row.want!r}"
    return Result(name, worst, detail)


def _row_ratio(got: Any, want: Any, tolerance: float) -> float:
    if isinstance(got, (list, tuple)) and isinstance(want, (list, tuple)):
        if len(got) != len(want):
            return math.inf
        return max((_row_ratio(g, w, tolerance) for g, w in zip(got, want, strict=True)), default=0.0)
    numbers = isinstance(got, (int, float)) and isinstance(want, (int, float))
    if tolerance and numbers and not isinstance(want, bool):
        if math.isnan(got) or math.isnan(want):
            return 0.0 if math.isnan(got) and math.isnan(want) else math.inf
        return abs(got - want) / tolerance
    return 0.0 if got == want else math.inf
