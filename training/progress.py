"""Keeps a training run safe: checkpoints written whole or not at all, a log of numbers, curves as a picture."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from .pictures import draw_curves
from .refused import Refused

log = logging.getLogger("opensora")

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
CURVES_NAME = "curves.png"
SMOOTHING_POINTS = 120  # points of a drawn curve; each is the mean of the values in between


class Progress:
    """State of one run below ``folder``: load what is there, save every ``minutes``, log every step."""

    def __init__(self, folder: Path, minutes: float = 3.0) -> None:
        self.folder = folder
        self.seconds = minutes * 60
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the start of a run; log lines written after it are dropped."""
        if not self.checkpoint.exists():
            (self.folder / LOG_NAME).unlink(missing_ok=True)
            return None
        state = self.read()
        lines = [line for line in self._lines() if line["step"] < state["step"]]
        (self.folder / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return state

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / CHECKPOINT_NAME

    def read(self) -> dict[str, Any]:
        """The last checkpoint, without touching the log; Refused if there is none or it is broken."""
        if not self.checkpoint.exists():
            raise Refused(f"There is no checkpoint in '{self.folder}'; run the training first.")
        return _read(self.checkpoint)

    def check(self, weights: Mapping[str, Tensor], model: nn.Module) -> None:
        """Raises :class:`.refused.Refused` unless the weights of a checkpoint are of ``model``."""
        shapes, wanted = ({name: value.shape for name, value in of.items()} for of in (weights, model.state_dict()))
        if shapes != wanted:
            raise Refused(f"The run in '{self.folder}' is of another release, kind or recipe than is asked for.")

    def keep(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a state that stays when checkpoints go on."""
        _write_whole(self.folder / f"{name}.pt", state)

    def kept(self, name: str) -> dict[str, Any]:
        """A state written by :meth:`keep`; Refused if there is none or it is broken."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            raise Refused(f"There is no {path.name} in '{self.folder}'; let the training run on first.")
        return _read(path)

    def write(self, step: int, **values: float) -> None:
        """Append one line to the log."""
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in values.items()}}) + "\n")

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved > self.seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint (with ``step`` = steps done) and the curves; an interruption leaves the old ones."""
        _write_whole(self.checkpoint, state)
        draw_curves(self._curves(), self.folder / CURVES_NAME)
        self._saved = time.monotonic()
        log.info("step %d saved to %s", state["step"], self.checkpoint)

    def _lines(self) -> list[dict[str, float]]:
        path = self.folder / LOG_NAME
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _curves(self) -> dict[str, list[tuple[float, float]]]:
        lines = self._lines()
        chunk = max(1, len(lines) // SMOOTHING_POINTS)
        curves: dict[str, list[tuple[float, float]]] = {}
        for start in range(0, len(lines) - chunk + 1, chunk):
            part = lines[start : start + chunk]
            for name in part[0].keys() - {"step"}:
                values = [line[name] for line in part if name in line]
                curves.setdefault(name, []).append((part[-1]["step"], sum(values) / len(values)))
        return dict(sorted(curves.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, UnpicklingError) as error:
        raise Refused(f"'{path}' cannot be read as a checkpoint ({type(error).__name__}).") from None
    if not isinstance(state, dict) or "step" not in state:
        raise Refused(f"'{path}' is no checkpoint of a training run.")
    return state


def _write_whole(path: Path, state: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)
