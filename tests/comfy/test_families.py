"""Every release has a file it is read from, a latent format and a MODEL; a new one needs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opensora.opensora_models.checkpoint.opening import open_checkpoint
from opensora.opensora_models.releases.known import RELEASES
from support.native import empty, load, model_file, sample

pytestmark = [pytest.mark.comfy, pytest.mark.compat]


def test_every_release_has_its_kind_of_file(comfy: Path) -> None:
    from opensora.opensora_models.checkpoint.kinds import OPEN_SORA
    from opensora.opensora_models.native.model.families import CONFIG_CLASSES, EXPECTED, FAMILIES
    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS

    assert sorted(family.release for family in FAMILIES.values()) == sorted(RELEASES) == sorted(LATENT_FORMATS)
    assert set(FAMILIES) <= set(OPEN_SORA)
    assert len({each.unet_config["image_model"] for each in CONFIG_CLASSES}) == len(CONFIG_CLASSES)
    for release in RELEASES:
        assert release.split()[0] in EXPECTED


@pytest.mark.parametrize("release", RELEASES)
def test_its_file_becomes_its_model(comfy: Path, tiny_models: Path, release: str) -> None:
    from opensora.opensora_models.native.model.base_model import OpenSoraBase, opensora_config, release_of
    from opensora.opensora_models.native.model.families import FAMILIES

    family = FAMILIES[open_checkpoint(model_file(tiny_models, release)).kind]
    model, known = load(tiny_models, release), RELEASES[release]
    assert family.release == release and release_of(model) is known
    assert isinstance(model.model, OpenSoraBase) and isinstance(model.model, family.config_class.model_class)
    form = model.model.latent_format
    assert form.latent_channels == known.latents.channels == opensora_config(model).channels
    assert len(form.latent_rgb_factors) == form.latent_channels and form.latent_dimensions == 3
    assert model.model.memory_required([2, form.latent_channels, 5, 16, 16]) > 0
    done = sample(model, empty(release, 2, 4, 4), steps=1)
    assert done.shape == (1, known.latents.channels, 2, 4, 4) and bool(torch.isfinite(done).all())
    # What ComfyUI saves of it is read as the same kind, with the same settings.
    saved = family.config_class.of(model.model.opensora, release).process_unet_state_dict_for_saving({})
    assert [name.rpartition(".diffusion_model.")[2] for name in saved] == ["opensora.config"]
