"""Networks of clips, which leave ComfyUI's layout of pictures out."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("opensora")


class ClipLayout(nn.Module):
    """Base of a network that stays as it is under ``--force-channels-last``."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch, but ``--force-channels-last`` is left out: it is a layout of pictures, not of clips."""
        if kwargs.get("memory_format") is torch.channels_last:
            logger.info("--force-channels-last does nothing for Open-Sora: its networks read clips.")
            kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
        return super().to(*args, **kwargs) if args or kwargs else self
