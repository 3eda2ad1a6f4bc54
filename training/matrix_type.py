"""The number type in which this machine multiplies matrices fastest, which decides how long a training takes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def matrix_type() -> torch.dtype:
    """bfloat16 where the CPU is fast in it, else float32, which PyTorch multiplies many times faster there."""
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else torch.float32


def fast_matrices(enabled: bool) -> AbstractContextManager[None]:
    """Linear layers in that type while ``enabled``, as a training step wants it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled and matrix_type() is torch.bfloat16)
