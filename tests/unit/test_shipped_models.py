"""The tiny trained models in ``demo/models``: complete, small, and made by the recipe that is in the repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from safetensors import safe_open

from opensora.opensora_models.checkpoint.opening import open_checkpoint
from opensora.opensora_models.releases.groups import VERSIONS, Version
from opensora.opensora_models.vae.recognition import recognise
from opensora.training.autoencoder import RECIPES as AUTOENCODERS
from opensora.training.flow_recipes import RECIPES
from support.pack import PACK_ROOT

MODELS = PACK_ROOT / "demo" / "models"
MAX_MEGABYTES = 40


def metadata(name: str) -> dict[str, str]:
    with safe_open(str(MODELS / name), "pt") as file:
        return dict(file.metadata())


LATER = (("misnamed_share", 0.0),)
"""Settings that came after files were made, with the values that change nothing."""


def in_json(value: Any) -> Any:
    return json.loads(
        json.dumps(value, default=str),
        object_hook=lambda found: {key: one for key, one in found.items() if (key, one) not in LATER},
    )


def test_they_are_small_and_nothing_else_lies_there() -> None:
    files = {str(path.relative_to(MODELS)): path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert set(files) == {
        "text_encoders/opensora-tiny-t5.safetensors",
        *(f"diffusion_models/opensora-tiny-v{version}.safetensors" for version in VERSIONS),
        *(f"vae/opensora-tiny-vae-v{version}.safetensors" for version in VERSIONS),
    }
    assert sum(files.values()) < MAX_MEGABYTES * 1e6


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recipe_in_the_file_is_that_of_the_repository(version: Version) -> None:
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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_autoencoder_is_recognised(version: Version) -> None:
    found = recognise(open_checkpoint(MODELS / "vae" / f"opensora-tiny-vae-v{version}.safetensors"))
    assert found.version == version
