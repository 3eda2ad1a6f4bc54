"""What weights cannot tell: choices over settings over released values, and nonsense refused."""

from __future__ import annotations

import pytest

from opensora.opensora_models.checkpoint.settings import Choices
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13
from opensora.opensora_models.stdit3.settings import complete


def test_without_anything_the_released_values_stay() -> None:
    assert complete(XL_V13, {}) == XL_V13
    assert complete(XL_V12, {}, Choices()) == XL_V12


def test_settings_beside_the_file_are_used() -> None:
    settings = {"kernel_size": [4, 6, 8], "use_spatial_rope": False, "input_sq_size": 256, "hidden_size": 1152}
    config = complete(XL_V13, settings)
    assert (config.kernel_size, config.use_spatial_rope, config.input_sq_size) == ((4, 6, 8), False, 256)


def test_a_choice_wins_over_the_settings() -> None:
    settings = {"kernel_size": [4, 6, 8], "use_spatial_rope": False}
    config = complete(XL_V13, settings, Choices(window=16, spatial_rotary=True, input_sq_size=1024))
    assert (config.kernel_size, config.use_spatial_rope, config.input_sq_size) == ((16, 16, -1), True, 1024)


def test_settings_of_another_model_are_left_out() -> None:
    assert complete(XL_V13, {"hidden_size": 64, "kernel_size": [4, 4, -1]}) == XL_V13


def test_a_model_without_windows_gets_none_from_a_file() -> None:
    assert complete(XL_V12, {"kernel_size": [8, 8, -1], "use_spatial_rope": True}) == XL_V12


@pytest.mark.parametrize("choices", [Choices(window=8), Choices(spatial_rotary=True)])
def test_a_model_without_windows_refuses_to_be_given_one(choices: Choices) -> None:
    with pytest.raises(ValueError, match="has no windows"):
        complete(XL_V12, {}, choices)


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 8}, {"kernel_size": [8, 8]}, {"kernel_size": ["a", 8, 8]}, {"input_sq_size": 0}],
)
def test_nonsense_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        complete(XL_V13, settings)
