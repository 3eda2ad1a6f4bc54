"""A part of a video that is made again is the same part."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate

REPEATS = 30


def clip(height: int, width: int, frames: int = 9) -> torch.Tensor:
    """Smooth motion over a texture, [frames, height, width, 3]: sides of whole and of odd numbers of macroblocks."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pictures = [
        torch.stack(
            [
                0.5 + 0.4 * torch.sin(columns / 17 + number / 3),
                0.5 + 0.35 * torch.cos(rows / 11 - number / 4),
                (columns * 3 + rows * 2 + number * 5) % 256 / 256,
            ],
            dim=-1,
        )
        for number in range(frames)
    ]
    return torch.stack(pictures)


def scattered() -> list[np.ndarray]:
    """Memory of many sizes that is not zero; most of it is free again at once."""
    made = [np.full(random.randrange(16, 200_000), random.randrange(256), np.uint8) for _ in range(20)]
    return made[: random.randrange(20)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_part_made_again_is_the_same(form: str, tmp_path: Path) -> None:
    random.seed(1)
    pictures, found = clip(72, 104), set()
    for number in range(REPEATS):
        kept = scattered()
        video = GroupedVideo(tmp_path / str(number), FORMATS[form], exact_rate(24), 18)
        video.write(0, pictures)
        with av.open(str(video.part(0))) as file:
            found.add(b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)))
        del kept
    assert len(found) == 1


def test_the_macroblock_tree_stays_off() -> None:
    """With it three of 800 parts of random pixels differed, too few for the test above to be sure."""
    assert FORMATS["mp4 (h264)"].options["mbtree"] == "0"
