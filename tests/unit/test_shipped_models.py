"""The tiny trained models in ``demo/models``: complete, small, and made by the recipe that is in the repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from opensora.opensora_models.checkpoint.opening import open_checkpoint
from opensora.opensora_models.vae.recognition import recognise
from opensora.training.autoencoder import RECIPES as AUTOENCODERS
from opensora.training.autoencoder import analysed
from opensora.training.clip_l import ClipL, ClipLConfig
from opensora.training.exported import code_in
from opensora.training.flow_recipes import RECIPES, TEXT_ENCODER
from support.shipped import DEMO, SHIPPED, of_shipped

MAX_MEGABYTES = 45


def metadata(name: str) -> dict[str, str]:
    with safe_open(str(DEMO / name), "pt") as file:
        return dict(file.metadata())


LATER = (
    ("misnamed_share", 0.0), ("named_rivals", False), ("other_rivals", False), ("going_on_share", 0.3), ("muon", 0.0),
    ("recognised", False), ("unrecognised", 0.3), ("equal_channels", False),
)  # fmt: skip
"""Settings that came after files were made, with the values that change nothing."""


def in_json(value: Any) -> Any:
    return json.loads(
        json.dumps(value, default=str),
        object_hook=lambda found: {key: one for key, one in found.items() if (key, one) not in LATER},
    )


def test_they_are_small_and_nothing_else_lies_there() -> None:
    files = {str(path.relative_to(DEMO)): path.stat().st_size for path in DEMO.rglob("*") if path.is_file()}
    assert set(files) == {
        "text_encoders/opensora-tiny-t5.safetensors",
        *(["text_encoders/opensora-tiny-clip-l.safetensors"] if "2.0" in SHIPPED else []),
        *(f"diffusion_models/opensora-tiny-v{version}.safetensors" for version in SHIPPED),
        *(f"vae/opensora-tiny-vae-v{version}.safetensors" for version in SHIPPED),
        "loras/opensora-tiny-v1.3-lora.safetensors",
    }
    assert sum(files.values()) < MAX_MEGABYTES * 1e6


@pytest.mark.parametrize("version", SHIPPED)
def test_the_recipe_in_the_file_is_that_of_the_repository(version: str) -> None:
    flow, autoencoder = RECIPES[version], AUTOENCODERS[version]
    steps = {"diffusion": flow.steps, "vae": sum(stage.steps for stage in autoencoder.stages)}
    files = {
        f"diffusion_models/opensora-tiny-v{version}.safetensors": {"steps": steps["diffusion"], **asdict(flow)},
        f"vae/opensora-tiny-vae-v{version}.safetensors": {"steps": steps["vae"], **asdict(autoencoder)},
    }
    for name, recipe in files.items():
        told = metadata(name)
        assert told["opensora.version"] == version and "not a released" in told["opensora.note"]
        assert in_json(json.loads(told["opensora.training"])) == in_json(recipe), name


def test_the_text_encoder_learned_as_its_recipe_says() -> None:
    """It is older than a recipe of its own: the phases behind are of the diffusion model that it was trained with."""
    told = in_json(json.loads(metadata("text_encoders/opensora-tiny-t5.safetensors")["opensora.training"]))
    recipe = in_json(asdict(TEXT_ENCODER))
    phases, later = told.pop("phases"), len(recipe["phases"])
    assert phases[:later] == recipe.pop("phases") and not any(phase["trains_text"] for phase in phases[later:])
    told.pop("steps")
    assert told == recipe


@pytest.mark.parametrize("version", SHIPPED)
def test_the_autoencoder_is_recognised(version: str) -> None:
    found = recognise(open_checkpoint(DEMO / "vae" / f"opensora-tiny-vae-v{version}.safetensors"))
    assert found.version == version


@pytest.mark.parametrize("version", SHIPPED)
def test_its_channels_weigh_what_the_recipe_says(version: str) -> None:
    recipe = AUTOENCODERS[version]
    code = code_in(DEMO, version)
    spread = code(analysed(recipe)).std(dim=(0, 2, 3))
    equal = bool((spread - 1).abs().max() < 0.01)
    assert equal == recipe.equal_channels, spread


@pytest.mark.parametrize("version", of_shipped("2.0"))
def test_the_second_text_encoder_is_the_one_of_its_seed(version: str) -> None:
    recipe = ClipLConfig(width=RECIPES[version].network.vec_in_dim)
    told = metadata("text_encoders/opensora-tiny-clip-l.safetensors")
    assert json.loads(told["opensora.training"]) == {"steps": 0, **in_json(asdict(recipe))}
    stored = load_file(DEMO / "text_encoders" / "opensora-tiny-clip-l.safetensors")
    made = ClipL(recipe).exported()
    assert set(stored) == set(made)
    for name, value in made.items():
        assert torch.equal(stored[name], value.half()), name
