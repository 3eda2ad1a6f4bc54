"""What only decoding can know is refused with the place where the sampled latents are kept; they load from there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.native import randn

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.comfy]

KEPT = re.compile(r"go on from '(.+?\.latent \[output\])' with Open-Sora Load Latent")


@pytest.fixture(scope="module")
def vae(comfy: Path, tiny_models: Path) -> Any:
    from opensora.opensora_models.native.vae.vae import load_vae

    return load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors")


def refuse(name: str, **values: Any) -> str:
    from opensora.nodes import NODES

    node = next(node for node in NODES if node.define_schema().node_id == name)
    video = {"frame_rate": 24.0, "format": "mp4 (h264)", "quality": 18} if name == "OSoraDecodeToVideo" else {}
    images = {"save_latent": True} if name == "OSoraDecode" else {}
    settings = {"tile_size": "256", "filename_prefix": "late/opensora", "num_frames": 0, **video, **images, **values}
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    with pytest.raises(ValueError) as caught, torch.inference_mode():
        clone.execute(**settings)
    return str(caught.value)


@pytest.mark.parametrize("name", ["OSoraDecode", "OSoraDecodeToVideo"])
@pytest.mark.parametrize(
    ("shape", "changed", "words"),
    [
        ((1, 16, 5, 8, 8), {}, "16 channels as Open-Sora 1.3 has them"),
        ((1, 4, 5, 8, 8), {"num_frames": 40}, "the nearest good value is 17"),
        ((1, 8, 5, 8, 8), {}, "8 channels"),
    ],
)
def test_the_sentence_says_where_the_latents_are(
    vae: Any, name: str, shape: tuple[int, ...], changed: dict[str, Any], words: str
) -> None:
    from opensora.nodes.decode import LoadLatent

    latents = randn(*shape)
    said = refuse(name, samples={"samples": latents}, vae=vae, **changed)
    kept = KEPT.search(said)
    assert words in said and kept, said
    assert torch.equal(LoadLatent.execute(file=kept[1]).result[0]["samples"], latents)


def test_latents_without_numbers_are_not_kept(vae: Any) -> None:
    said = refuse("OSoraDecode", samples={"samples": torch.full((1, 4, 5, 8, 8), torch.nan)}, vae=vae)
    assert "not numbers" in said and not KEPT.search(said)
