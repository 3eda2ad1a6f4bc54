"""Moving average of weights (EMA): what is shipped is the average of the last steps, which is steadier than any one."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class MovingAverage:
    """average ← decay·average + (1 - decay)·weights; the first steps use a shorter memory."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(list(self.values.values()), list(model.parameters()), 1 - decay)

    def forget(self) -> None:
        """Let old weights count no more than at the start of a run, for one that changes course."""
        self.steps = 0

    def applied_to(self, model: Module) -> Module:
        """``model`` with the averaged weights (buffers stay as they are)."""
        model.load_state_dict(self.values, strict=False)
        return model

    def state_dict(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"steps": self.steps, **self.values}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """From a checkpoint."""
        self.steps = int(state["steps"])
        self.values = {name: torch.as_tensor(state[name]) for name in self.values}
