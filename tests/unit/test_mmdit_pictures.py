"""References at the size of the clip: what is cut, what is rounded, and the way back to 8 bits."""

from __future__ import annotations

import pytest
import torch

from opensora.opensora_models.sampling.pictures import fill_clip, fill_picture, fit_as_original, to_model, to_pixels


def columns(width: int, height: int = 4) -> torch.Tensor:
    """A picture whose columns carry their number."""
    return torch.arange(width, dtype=torch.uint8).view(1, -1, 1).expand(height, width, 3).contiguous()


@pytest.mark.parametrize(("width", "first"), [(5, 0), (6, 1), (7, 2), (9, 2), (11, 4)])
def test_a_picture_is_cut_at_half_the_surplus_rounded_to_even(width: int, first: int) -> None:
    assert fill_picture(columns(width), 4, 4)[0, :, 0].tolist() == list(range(first, first + 4))


@pytest.mark.parametrize(("width", "first"), [(5, 0), (6, 1), (7, 1), (9, 2), (11, 3)])
def test_a_clip_is_cut_at_half_the_surplus_rounded_down(width: int, first: int) -> None:
    frames = columns(width).movedim(-1, 0)[None].float()
    assert fill_clip(frames, 4, 4)[0, 0, 0].tolist() == list(range(first, first + 4))


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (7, 90), (16, 24), (33, 49)])
def test_every_picture_and_clip_gets_the_wanted_size(size: tuple[int, int]) -> None:
    pictures = torch.rand(3, *size, 3, generator=torch.Generator().manual_seed(0))
    assert fit_as_original(pictures, 16, 24).shape == (3, 16, 24, 3)
    assert fit_as_original(pictures[:1], 16, 24).shape == (1, 16, 24, 3)


def test_a_single_picture_goes_through_8_bits_and_an_unchanged_clip_keeps_its_pixels() -> None:
    pictures = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    single = fit_as_original(pictures[:1], 4, 4) * 255
    torch.testing.assert_close(single, single.round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(fit_as_original(pictures, 8, 8), (pictures * 255).round() / 255)


def test_pixels_come_back_from_the_models_range() -> None:
    pixels = torch.arange(256) / 255
    assert to_pixels(to_model(pixels)).tolist() == list(range(256))
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
