"""Tables of positions, their rounding, and the cutting of windows."""

from __future__ import annotations

import itertools

import pytest
import torch

from opensora.opensora_models.stdit3.positions import PositionEmbedding2D, RotaryEmbedding, rounded_number
from opensora.opensora_models.stdit3.windows import cut, gather, join
from opensora.opensora_models.transformer.positions import Rotary


def test_rounding_a_number_is_rounding_to_bfloat16() -> None:
    values = [0.0, 1.0, 23.976, 426.0, 854.0, 1108.0, 1280.0, 257.0, 259.0, 0.1, -3.3]
    rounded = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    assert [rounded_number(value, torch.bfloat16) for value in values] == rounded.tolist()
    assert [rounded_number(value, torch.float32) for value in values] == values


def test_position_table_puts_the_column_first() -> None:
    table = PositionEmbedding2D(8)(2, 3, scale=0.5).view(2, 3, 8)
    assert torch.equal(table[0, 1, :4], table[1, 1, :4])  # columns do not see the row
    assert torch.equal(table[1, 0, 4:], table[1, 2, 4:])
    torch.testing.assert_close(
        table[0, 1, :4],
        torch.tensor([2.0, 0.02, 2.0, 0.02])
        .sin()
        .where(torch.tensor([True, True, False, False]), torch.tensor([2.0, 0.02, 2.0, 0.02]).cos()),
    )


def test_compiled_and_complex_rotation_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = RotaryEmbedding(8).over_grid(2, 3, 4, scale=0.7, device=torch.device("cpu"))
    x = torch.randn(5, 24, 2, 24, generator=torch.Generator().manual_seed(0))
    turned = rotary.rotate(x)
    by_matrix = (rotary.matrices @ x.unflatten(-1, (-1, 2))[..., None]).flatten(-3)
    torch.testing.assert_close(by_matrix, turned)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotary.rotate(x), turned)


def test_rotation_depends_on_distance_alone() -> None:
    rotary = RotaryEmbedding(16).along(6, device=torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 6, 1, 16)
    products = (rotary.rotate(q)[:, 0] @ rotary.rotate(k)[:, 0].T).double()
    for shift in range(-5, 6):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert products.std() > 0.1


def test_rotary_frequencies_of_a_file_are_used() -> None:
    embedding = RotaryEmbedding(4)
    embedding.load_state_dict({"freqs": torch.tensor([0.5, 0.25])})
    rotary: Rotary = embedding.along(3, device=torch.device("cpu"))
    torch.testing.assert_close(rotary.cos[2, 0], torch.tensor([1.0, 0.5]).cos())


SIZES = [(3, 16, 8), (3, 9, 5), (1, 8, 8), (5, 17, 23), (2, 3, 3)]


@pytest.mark.parametrize(("size", "kernel"), list(itertools.product(SIZES, [(8, 8, -1), (4, 2, 2)])))
def test_windows_cover_every_token_once_and_come_back(size: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
    grid = torch.arange(2.0 * size[0] * size[1] * size[2]).view(2, *size, 1)
    pieces = cut(size, kernel)
    windows = [gather(grid, piece) for piece in pieces]
    assert sorted(torch.cat([part.flatten() for part in windows]).tolist()) == grid.flatten().tolist()
    assert torch.equal(join(windows, pieces, size), grid)


def test_a_window_holds_neighbours_and_borders_are_short_windows() -> None:
    pieces = cut((2, 9, 5), (8, 8, -1))
    assert [(piece.start, piece.size, piece.window) for piece in pieces] == [
        ((0, 0, 0), (2, 8, 5), (2, 8, 5)),
        ((0, 8, 0), (2, 1, 5), (2, 1, 5)),
    ]
    grid = torch.arange(2 * 4 * 4).view(1, 2, 4, 4, 1)
    (piece,) = cut((2, 4, 4), (2, 2, -1))
    assert gather(grid, piece)[1].flatten().tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
