"""Small seeded video autoencoders and clips for tests."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.image import ImageConfig
from opensora.opensora_models.vae.temporal import TemporalConfig
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate


def tiny12() -> OpenSora12:
    """Seeded, small, with the released number of levels."""
    torch.manual_seed(12)
    temporal = TemporalConfig(filters=8, blocks=1, groups=4)
    return OpenSora12(ImageConfig(widths=(8, 8, 16, 16), layers=1, groups=4), temporal).eval()


def tiny13(**options: bool) -> OpenSora13:
    """Seeded, small, with the released number of levels."""
    torch.manual_seed(13)
    return OpenSora13(CausalConfig(width=8, multipliers=(1, 1, 2, 2), blocks=1, groups=4), **options).eval()


def smooth_video(frames: int, height: int = 64, width: int = 96) -> Tensor:
    """Slowly moving colour waves [1, 3, T, H, W] in [-1, 1]."""
    t, y, x = (torch.linspace(0, 1, size) for size in (frames, height, width))
    phase = 2 * torch.pi * (t[:, None, None] + 1.5 * y[None, :, None] + x[None, None, :])
    return torch.stack([torch.sin(phase + shift) for shift in (0.0, 2.0, 4.0)])[None]


def decode_into(folder: Path, pause: float = 0.0) -> list[int]:
    """Decode a fixed clip of 6 groups into ``folder``, continuing what is there; gives the groups it decoded."""
    model = tiny12()
    latents = torch.randn(1, 4, 30, 2, 3, generator=torch.Generator().manual_seed(5))
    video = GroupedVideo(folder, FORMATS["mp4 (h264)"], exact_rate(24), 18)
    first, written = video.done(), []
    with torch.inference_mode():
        for number, pixels in enumerate(model.decoded(latents, first_part=first), first):
            video.write(number, (pixels[0].movedim(0, -1) + 1) / 2)
            written.append(number)
            time.sleep(pause)
    video.join(6, folder.with_suffix(".mp4"), None)
    return written
