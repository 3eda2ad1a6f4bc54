"""References of Open-Sora 2.0 brought to the size of the clip exactly as the original does it.

Both fill the frame and cut what sticks out in the middle. Pictures are resized as 8-bit pixels with Pillow's bicubic
filter, clips as floats with plain bilinear interpolation. Source: upstream ``opensora/datasets/utils.py`` of release
2.0. See :mod:`.fitting` for the choices people have beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

WHITE = 255


def filling_size(own: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture once it just covers the wanted ones; halves of a pixel go to the even number."""
    tall, wide = wanted[0] / own[0], wanted[1] / own[1]
    if tall > wide:
        return wanted[0], round(own[1] * tall)
    return round(own[0] * wide), wanted[1]


def fill_picture(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 pixels [H, W, 3] -> uint8 [height, width, 3]; the cut starts at half the surplus, rounded to even."""
    size = filling_size((pixels.shape[0], pixels.shape[1]), (height, width))
    picture = Image.fromarray(pixels.cpu().numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    top, left = (round(surplus / 2) for surplus in (size[0] - height, size[1] - width))
    cut = picture.crop((left, top, left + width, top + height))
    return torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(height, width, 3)


def fill_clip(frames: Tensor, height: int, width: int) -> Tensor:
    """Floats [T, C, H, W] -> [T, C, height, width]; the cut starts at half the surplus, rounded down."""
    own = (frames.shape[-2], frames.shape[-1])
    size = filling_size(own, (height, width))
    if size != own:
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def fit_as_original(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures [N, H, W, 3] of values 0 … 1 -> [N, height, width, 3]: a single one as a picture, several as a clip.

    Both start from 8-bit pixels, which is what files of pictures and videos hold.
    """
    pixels = (pictures[..., :3] * WHITE).round().clamp(0, WHITE)
    if pictures.shape[0] == 1:
        filled = fill_picture(pixels[0].to(torch.uint8), height, width)[None]
        return filled.to(pictures) / WHITE
    return fill_clip(pixels.movedim(-1, 1) / WHITE, height, width).movedim(1, -1).to(pictures)


def to_model(values: Tensor) -> Tensor:
    """0 … 1 -> -1 … 1."""
    return values * 2 - 1


def to_pixels(values: Tensor) -> Tensor:
    """Decoded values -1 … 1 -> uint8, halves going up, as the original writes its pictures."""
    return ((values.clamp(-1, 1) + 1) / 2 * WHITE + 0.5).to(torch.uint8)
