"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

All directions of a weight matrix then learn at the same speed, which saves about half the steps of a small
transformer. The iteration and its coefficients are from https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .matrix_type import matrix_type

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
ITERATIONS = 5
# Layers that hold several projections side by side; each is a matrix of its own.
PIECES = {"qkv": 3, "kv_linear": 2}
TOGETHER = 16  # matrices of a group: enough for one call, few enough to share among threads

Spread = Callable[[Callable[[Any], None], Iterable[Any]], Iterable[None]]


class Muon:
    """Takes the gradients of the given matrices and clears them, so that another optimiser leaves those alone."""

    def __init__(self, matrices: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.matrices = dict(matrices)
        self.momentum = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}

    @torch.no_grad()
    def step(self, rate: float, spread: Spread = map) -> None:
        """One update. Matrices of the same shape are made orthogonal together; ``spread``, the ``map`` of a pool of
        threads, does several such groups at a time."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, weight in self.matrices.items():
            if weight.grad is None:
                continue
            momentum = self.momentum[name].lerp_(weight.grad, 1 - MOMENTUM)
            ahead = weight.grad.lerp(momentum, MOMENTUM)
            count = PIECES.get(name.split(".")[-2], 1)
            for part, change in zip(weight.chunk(count), ahead.chunk(count), strict=True):
                matrix = part.view(len(part), -1)  # a convolution is one of what it reads by what it makes
                by_shape[matrix.shape].append((matrix, change.reshape(matrix.shape)))
            weight.grad = None
        groups = [
            parts[start : start + TOGETHER] for parts in by_shape.values() for start in range(0, len(parts), TOGETHER)
        ]  # fmt: skip
        for _ in spread(partial(_apply, rate), groups):
            pass

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return dict(self.momentum)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        self.momentum = {name: state[name] for name in self.momentum}


@torch.no_grad()
def _apply(rate: float, group: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Change matrices of one shape by their orthogonal directions."""
    rows, columns = group[0][0].shape
    changes = orthogonal(torch.stack([change for _, change in group]))
    for (matrix, _), change in zip(group, changes, strict=True):
        matrix.sub_(change, alpha=rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns] with all singular values brought near 1 (0.7 to 1.2), directions kept."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(matrix_type())
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)
