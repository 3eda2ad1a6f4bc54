"""Compares the project's own modules with recorded outputs of the original Open-Sora.

A *case* is one ``.safetensors`` file (tensors ``in.*``, ``out.*``, ``state.*`` and a JSON text ``case`` in the
metadata) or one ``.json`` table of input/output pairs. Families register here; the comparison itself is done in
this file, so that no family can call itself equal.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One recorded computation: its description and its tensors."""

    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def family(self) -> str:
        return self.info["family"]

    @property
    def kind(self) -> str | None:
        return self.info.get("kind")

    @property
    def config(self) -> Any:
        return self.info.get("config")

    def input(self, name: str) -> Tensor | None:
        """The tensor ``in.<name>``, or None where the case has none."""
        return self.tensors.get(f"in.{name}")

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with ``prefix``, keyed by the rest of the name."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    @property
    def expected(self) -> dict[str, Tensor]:
        return self.with_prefix("out.")


@dataclass(frozen=True)
class Row:
    """One line of a JSON table: what was computed, what was recorded, and how far apart they may be."""

    label: str
    got: Any
    want: Any
    tolerance: float = 0.0


@dataclass(frozen=True)
class Result:
    """Outcome of one case. ``worst`` is the largest error divided by its tolerance; None = not implemented."""

    name: str
    worst: float | None
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.worst is not None and self.worst <= 1.0


CaseRunner = Callable[[Case], Mapping[str, Tensor]]
TableRunner = Callable[[Any], Iterable[Row]]

_case_runners: list[tuple[Callable[[Case], bool], CaseRunner]] = []
_table_runners: dict[str, dict[str, TableRunner]] = {}


def runs_cases(accepts: Callable[[Case], bool]) -> Callable[[CaseRunner], CaseRunner]:
    """Register a function that recomputes every ``out.*`` tensor of the cases it accepts."""

    def register(run: CaseRunner) -> CaseRunner:
        _case_runners.append((accepts, run))
        return run

    return register


def runs_table(stem: str, *sections: str) -> Callable[[TableRunner], TableRunner]:
    """Register a function for the JSON table ``<stem>.json``.

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
            filled[ours] = case.tensors[f"state.{key}"].reshape(entry.shape)
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
    """Read one ``.safetensors`` case."""
    with safe_open(str(path), "pt") as file:
        info = json.loads(file.metadata()["case"])
        keys = file.keys()  # not iterable itself
        return Case(path.stem, info, {key: file.get_tensor(key) for key in keys})


def case_files(folder: Path) -> list[Path]:
    """Every case and table below ``folder``, in a stable order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".json"})


def run_file(path: Path) -> Iterator[Result]:
    """Run one case (one result) or one table (one result per section)."""
    if path.suffix == ".json":
        yield from _run_table(path)
    else:
        yield _run_case(load_case(path))


def _run_case(case: Case) -> Result:
    for accepts, run in _case_runners:
        if accepts(case):
            try:
                with torch.no_grad():
                    return _compare_case(case, run(case))
            except Exception as error:  # a broken family must not hide the results of the others
                return Result(case.name, math.inf, f"{type(error).__name__}: {error}")
    return Result(case.name, None)


def _compare_case(case: Case, got: Mapping[str, Tensor]) -> Result:
    expected = case.expected
    missing = sorted(set(expected) - set(got))
    if missing or not expected:
        return Result(case.name, math.inf, f"nothing computed for {missing or 'any output'}")
    errors = {name: _error_ratio(case, name, got[name], want) for name, want in expected.items()}
    name = max(errors, key=errors.__getitem__)
    return Result(case.name, errors[name], f"{len(errors)} tensors, worst out.{name}")


def _error_ratio(case: Case, name: str, got: Tensor, want: Tensor) -> float:
    """Largest error divided by its tolerance; infinite where shapes differ or a value is not finite."""
    if tuple(got.shape) != tuple(want.shape):
        return math.inf
    if not want.is_floating_point():
        return 0.0 if torch.equal(got.to(want.dtype), want) else math.inf
    a, b = got.detach().double(), want.double()
    same_special = (a == b) | (a.isnan() & b.isnan())
    if not bool((a.isfinite() | same_special).all()):
        return math.inf
    a, b = a.masked_fill(same_special, 0.0), b.masked_fill(same_special, 0.0)
    rules = case.info["tolerances"]
    rules = rules.get("per_tensor", {}).get(f"out.{name}", rules)
    if "rel_l2" in rules:
        return float((a - b).norm() / want.double().norm().clamp_min(1e-30)) / rules["rel_l2"]
    atol = rules.get("atol_per_output", {}).get(f"out.{name}", rules["atol"])
    error, allowed = (a - b).abs(), atol + rules["rtol"] * b.abs()
    return float(torch.where(error == 0, 0.0, error / allowed).max()) if a.numel() else 0.0


def _run_table(path: Path) -> Iterator[Result]:
    data = json.loads(path.read_text(encoding="utf-8"))
    runners = _table_runners.get(path.stem, {})
    for section, part in _sections(data, runners):
        name = f"{path.name}:{section}" if section else path.name
        run = runners.get(section)
        if run is None:
            yield Result(name, None)
            continue
        try:
            rows = list(run(part))
        except Exception as error:
            yield Result(name, math.inf, f"{type(error).__name__}: {error}")
            continue
        yield _compare_rows(name, rows)


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
