"""Latents to small pictures, and the pictures of a clip side by side in one."""

from __future__ import annotations

import base64
import io
import math
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

LONGEST_SIDE = 128
"""Pixels of the longer side of a picture; a node is hardly wider than two of them."""
JPEG_QUALITY, WHOLE_COLOURS = 80, 0
"""Colours are not made coarser than the pictures, which are small; Pillow calls that subsampling 0."""


class Mode(Enum):
    """What is shown of a clip; the values are those of the page's setting."""

    OFF = "off"
    FIRST = "first"
    SHEET = "sheet"
    LOOP = "loop"


MOST_FRAMES = {Mode.OFF: 0, Mode.FIRST: 1, Mode.SHEET: 9, Mode.LOOP: 128}
"""Pictures of a clip at most: a sheet of more would be too small to see, a loop of more too much to send."""


def evenly(frames: int, most: int) -> list[int]:
    """Numbers of at most ``most`` of so many frames, the first and the last among them where there is room."""
    shown = min(frames, most)
    return [round(i * (frames - 1) / max(shown - 1, 1)) for i in range(shown)]


def small_pictures(latents: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
    """Latents [C, T, h, w] by ``factors`` [C, 3] and ``bias`` [3] to pictures uint8 [T, h', w', 3] on their device."""
    rgb = torch.einsum("cthw,ck->tkhw", latents.float(), factors)
    if bias is not None:
        rgb = rgb + bias[None, :, None, None]
    height, width = rgb.shape[-2:]
    scale = LONGEST_SIDE / max(height, width)
    if scale < 1:
        rgb = functional.adaptive_avg_pool2d(rgb, (max(1, round(height * scale)), max(1, round(width * scale))))
    return ((rgb + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).to(torch.uint8).movedim(1, -1)


def columns_for(frames: int) -> int:
    """Columns of the sheet that ``frames`` pictures lie on."""
    return math.ceil(math.sqrt(frames))


def sheet_of(pictures: Tensor) -> Tensor:
    """Pictures [T, h, w, 3] in reading order on one sheet [rows*h, columns*w, 3]; unused places are black."""
    frames, height, width, _ = pictures.shape
    columns = columns_for(frames)
    rows = math.ceil(frames / columns)
    places = pictures.new_zeros((rows * columns, height, width, 3))
    places[:frames] = pictures
    lines = places.view(rows, columns, height, width, 3).permute(0, 2, 1, 3, 4)
    return lines.reshape(rows * height, columns * width, 3)


def clip_picture(latents: Tensor, mode: Mode, factors: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """The first of the clips [B, C, T, h, w] as one picture of many, and how they lie on it: what a page is sent."""
    clips, _, length = latents.shape[:3]
    chosen = evenly(length, MOST_FRAMES[mode])
    clip, device = latents[0] if len(chosen) == length else latents[0][:, chosen], latents.device
    pictures = small_pictures(clip, factors.to(device), None if bias is None else bias.to(device))
    frames, height, width, _ = pictures.shape
    return {
        "picture": _jpeg(sheet_of(pictures.cpu())),
        "frames": frames,
        "columns": columns_for(frames),
        "width": width,
        "height": height,
        "latent_frames": length,
        "clips": clips,
    }


def _jpeg(picture: Tensor) -> str:
    """Pixels uint8 [H, W, 3] as an address that a page shows."""
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, "JPEG", quality=JPEG_QUALITY, subsampling=WHOLE_COLOURS)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
