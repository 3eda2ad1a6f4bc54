"""What weights cannot show survives every save node of core: pictures after the round trip are equal bit for bit."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opensora.opensora_models.checkpoint.settings import NAME
from opensora.opensora_models.mmdit import keys as mmdit_keys
from opensora.opensora_models.mmdit import settings as mmdit_settings
from opensora.opensora_models.mmdit.config import MMDiTConfig
from opensora.opensora_models.mmdit.config import config_from_shapes as mmdit_config
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13, STDiT3Config, config_from_shapes
from opensora.opensora_models.stdit3.keys import to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.stdit3.settings import complete
from opensora.opensora_models.stdit3.settings import saved_settings as saved_model_settings
from opensora.opensora_models.text.t5_config import EMBEDDING, T5Config, encoder_shapes, t5_config
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.file_settings import options_of, saved_settings
from opensora.opensora_models.vae.image import ImageConfig
from opensora.opensora_models.vae.recognition import causal_config, image_config, temporal_config
from opensora.opensora_models.vae.temporal import TemporalConfig
from support.native import conditioning, empty, randn, sample
from support.pack import PACK_ROOT
from support.saving import saved

pytestmark = pytest.mark.comfy

DEMO = PACK_ROOT / "demo" / "models"
VERSIONS = ("1.2", "1.3")

# For every field of every config another value that some network may have. A new field needs one here.
OTHER_VALUES: dict[type, tuple[Any, dict[str, Any]]] = {
    STDiT3Config: (
        replace(XL_V13, hidden_size=144, num_heads=2, depth=1),
        {
            "version": "1.2", "depth": 3, "hidden_size": 288, "num_heads": 4, "mlp_ratio": 2.5, "in_channels": 8,
            "caption_channels": 32, "model_max_length": 20, "input_sq_size": 256, "patch_size": (1, 1, 2),
            "qk_norm": False, "pred_sigma": False, "kernel_size": (4, 2, 3), "use_spatial_rope": False,
            "skip_temporal": True,
        },
    ),
    MMDiTConfig: (
        MMDiTConfig(
            in_channels=16, vec_in_dim=12, context_in_dim=20, hidden_size=48, num_heads=2, depth=1,
            depth_single_blocks=1, axes_dim=(4, 10, 10),
        ),
        {
            "in_channels": 32, "vec_in_dim": 8, "context_in_dim": 16, "hidden_size": 96, "mlp_ratio": 2.5,
            "num_heads": 1, "depth": 2, "depth_single_blocks": 3, "axes_dim": (8, 8, 8), "theta": 500.0,
            "qkv_bias": False, "guidance_embed": True, "cond_embed": False, "fused_qkv": True, "patch_size": 1,
            "rotation": "interleaved", "round_time": False, "text_tokens": 24,
        },
    ),
    CausalConfig: (
        CausalConfig(width=8, multipliers=(1, 2, 4, 4), groups=8),
        {
            "width": 16, "multipliers": (1, 1, 1, 2), "blocks": 1, "latent_channels": 4, "temporal_down": (0, 1),
            "temporal_up": (1, 2), "groups": 4,
        },
    ),
    ImageConfig: (
        ImageConfig(widths=(8, 8, 16, 16), groups=8),
        {"widths": (8, 16, 16, 32), "layers": 1, "latent_channels": 8, "groups": 2},
    ),
    TemporalConfig: (
        TemporalConfig(filters=8, blocks=1, groups=8),
        {
            "channels": 8, "latent_channels": 8, "filters": 16, "blocks": 2, "multipliers": (1, 1, 2, 2),
            "downsample": (True, False, True), "groups": 1,
        },
    ),
    T5Config: (
        T5Config(64, 128, 16, 4, 2, 32128),
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 8, "num_layers": 1, "vocab_size": 32100},
    ),
}  # fmt: skip
NOT_FROM_FILES = {"group_frames", "operations", "config", "image", "temporal"}
"""Parameters of the autoencoders that are no property of a file: the frames of a group are fixed in frames.py."""


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def below(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def read_again(config: Any) -> Any:
    """The config that the shapes and saved settings of its network give."""
    with torch.device("meta"):
        if isinstance(config, STDiT3Config):
            shapes = {to_checkpoint_key(name): shape for name, shape in shapes_of(STDiT3(config)).items()}
            return complete(config_from_shapes(shapes), saved_model_settings(config))
        if isinstance(config, MMDiTConfig):
            shapes = {mmdit_keys.to_checkpoint_key(name): shape for name, shape in shapes_of(MMDiT(config)).items()}
            return mmdit_settings.complete(mmdit_config(shapes), mmdit_settings.saved_settings(config))
        if isinstance(config, T5Config):
            return t5_config({EMBEDDING: (config.vocab_size, config.d_model), **encoder_shapes(config)}, "file")
        if isinstance(config, CausalConfig):
            network = OpenSora13(config)
            return causal_config(shapes_of(network), saved_settings((config,), network))
        if isinstance(config, ImageConfig):
            network = OpenSora12(config, TemporalConfig(channels=config.latent_channels))
            settings = saved_settings((config, TemporalConfig()), network)
            return image_config(below("spatial_vae.module.", shapes_of(network)), settings)
        network = OpenSora12(ImageConfig(), config)
        settings = saved_settings((ImageConfig(), config), network)
        return temporal_config(below("temporal_vae.", shapes_of(network)), settings)


@pytest.mark.parametrize("kind", OTHER_VALUES, ids=lambda kind: kind.__name__)
def test_every_field_comes_back_from_shapes_or_settings(kind: type) -> None:
    base, others = OTHER_VALUES[kind]
    assert set(others) == {field.name for field in fields(kind)}, "a field without another value to test it with"
    assert read_again(base) == base
    for name, value in others.items():
        changes, start = {name: value}, base
        if name == "version":
            changes |= {"kernel_size": None, "use_spatial_rope": False, "in_channels": 4}
        if name == "qk_norm":
            start = replace(XL_V12, hidden_size=144, num_heads=2, depth=1)  # 1.3 cannot be read without these norms
        if kind is MMDiTConfig and name in ("hidden_size", "num_heads"):
            changes |= {"axes_dim": (8, 20, 20)}
        changed = replace(start, **changes)
        assert changed != start and read_again(changed) == changed, name


def test_every_option_of_the_autoencoders_comes_back() -> None:
    assert set(inspect.signature(OpenSora12).parameters) <= NOT_FROM_FILES
    options = {"overlap": False, "normalization": "video_5frames"}
    assert set(inspect.signature(OpenSora13).parameters) - NOT_FROM_FILES == set(options)
    with torch.device("meta"):
        for changed in (options, {"overlap": True, "normalization": None}):
            network = OpenSora13(**changed)
            assert options_of(saved_settings((CausalConfig(),), network)) == changed


@pytest.fixture(scope="module")
def files(comfy: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Demo and random models; the random ones with settings that nothing but the settings shows."""
    folder = tmp_path_factory.mktemp("odd")
    found = {path.name: path for root in (DEMO, tiny_models) for path in root.rglob("*.safetensors")}
    odd: dict[str, dict[str, Any]] = {
        "random-v1.3.safetensors": {"kernel_size": [2, 3, -1], "use_spatial_rope": False, "input_sq_size": 256},
        "random-v1.2.safetensors": {"input_sq_size": 128},
        "random-v2.0.safetensors": {"use_liger_rope": False, "theta": 500, "axes_dim": [8, 12, 12]},
        "random-v2.0-hc.safetensors": {"round_time": False, "text_tokens": 24},
        "random-vae-v1.3.safetensors": {"groups": 16, "overlap": False, "normalization": "video_5frames"},
        "random-vae-v1.2.safetensors": {"image_groups": 8, "temporal_groups": 2},
    }
    for name, settings in odd.items():
        weights = load_file(found[name])
        if name.endswith("vae-v1.2.safetensors"):
            weights |= {"shift": weights["shift"] + 0.123, "scale": weights["scale"] * 1.1}
        found[f"odd-{name}"] = folder / f"odd-{name}"
        save_file(weights, folder / f"odd-{name}", metadata={NAME: json.dumps(settings)})
    return found


@pytest.fixture
def core_knows(comfy: Path) -> Iterator[None]:
    """Core's loaders as the pack teaches them, put back afterwards."""
    from opensora.opensora_models.native.core import detection as core_detection

    before = core_detection.is_registered()
    core_detection.register()
    yield
    if not before:
        core_detection.unregister()


VAES = [f"{kind}-vae-v{version}" for version in VERSIONS for kind in ("opensora-tiny", "random", "odd-random")]
MODELS = [f"{kind}-v{version}" for version in VERSIONS for kind in ("opensora-tiny", "random", "odd-random")]
MODELS += [f"{kind}-v{version}" for version in ("2.0", "2.0-hc") for kind in ("random", "odd-random")]
TEXTS = ["opensora-tiny-t5", "random-t5"]


def vae_of(path: Path, **options: Any) -> Any:
    from opensora.opensora_models.native.vae.vae import load_vae

    return load_vae(path, **options)


def model_of(path: Path, **options: Any) -> Any:
    from opensora.opensora_models.native.model.loading import load_model

    with torch.inference_mode():
        return load_model(path, **options)


def text_of(path: Path) -> Any:
    from opensora.opensora_models.native.text.clip import load_text_encoder

    return load_text_encoder(path)


@torch.inference_mode()
def pictures(vae: Any) -> tuple[Tensor, Tensor]:
    """A clip of two groups decoded, and a clip of noise encoded."""
    latents = randn(1, vae.latent_channels, 10, 4, 4)
    return vae.decode(latents), vae.encode(randn(17, 32, 32, 3, seed=1).abs().clamp(0, 1))


def video(model: Any) -> Tensor:
    """A small clip of this MODEL."""
    from opensora.opensora_models.native.model.base_model import release_of

    text = conditioning(5, seed=2)
    if model.model.opensora.hidden_size not in (64, 96):  # the demo's, another width of text
        text = [[randn(1, 5, model.model.opensora.caption_channels, seed=2), {}]]
    return sample(model, empty(release_of(model).id, 3, 4, 6), text, text, steps=2)


def states(clip: Any) -> Tensor:
    return clip.encode_from_tokens({"t5xxl": [[(token, 1.0) for token in (9, 1712, 3, 32000, 1)]]})


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", VAES)
def test_vae_save(name: str, files: dict[str, Path]) -> None:
    vae = vae_of(files[f"{name}.safetensors"])
    expected = pictures(vae)
    path = saved("VAESave", f"vae/{name}", vae=vae)
    assert equal(pictures(vae_of(path)), expected)
    if name.startswith("odd"):
        weights = load_file(path)
        del weights[NAME]
        save_file(weights, path)
        assert not equal(pictures(vae_of(path)), expected), "the settings would not be missed"


def test_overlap_that_was_switched_off_is_saved(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    vae = vae_of(files["random-vae-v1.3.safetensors"], overlap=False)
    again = vae_of(saved("VAESave", "vae/overlap", vae=vae))
    assert "temporal_overlap stays off" in caplog.text
    assert not again.network.overlap and equal(pictures(again), pictures(vae))


def test_halves_with_settings_of_their_own(files: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(files["random-vae-v1.2.safetensors"])
    parts = {"spatial_vae.module.": ("spatial", {"norm_num_groups": 8}), "temporal_vae.": ("temporal", {"groups": 2})}
    for prefix, (half, settings) in parts.items():
        (tmp_path / half).mkdir()
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        save_file(part, tmp_path / half / "half.safetensors")
        (tmp_path / half / "config.json").write_text(json.dumps(settings))
    vae = vae_of(tmp_path / "temporal" / "half.safetensors", spatial=tmp_path / "spatial" / "half.safetensors")
    assert [config.groups for config in vae.configs] == [8, 2]
    assert equal(pictures(vae_of(saved("VAESave", "vae/halves", vae=vae))), pictures(vae))


@pytest.mark.parametrize("name", MODELS)
def test_model_save(core_knows: None, name: str, files: dict[str, Path]) -> None:
    import comfy.sd

    model = model_of(files[f"{name}.safetensors"])
    expected = video(model)
    path = saved("ModelSave", f"diffusion_models/{name}", model=model)
    assert torch.equal(video(model_of(path)), expected)
    assert NAME not in " ".join(model.model_state_dict()), "merges and extracted LoRAs see weights only"
    with torch.inference_mode():
        core = comfy.sd.load_diffusion_model(str(path))
    assert torch.equal(video(core), expected)


def test_the_rotation_that_was_chosen_is_saved(files: dict[str, Path]) -> None:
    from opensora.opensora_models.checkpoint.settings import Choices

    plain = model_of(files["random-v2.0.safetensors"])
    chosen = model_of(files["random-v2.0.safetensors"], choices=Choices(rotation="interleaved"))
    assert not torch.equal(video(plain), video(chosen))
    again = model_of(saved("ModelSave", "diffusion_models/rotation", model=chosen))
    assert again.model.opensora == chosen.model.opensora and torch.equal(video(again), video(chosen))


def test_choices_of_the_loader_are_saved(files: dict[str, Path]) -> None:
    from opensora.opensora_models.checkpoint.settings import Choices
    from opensora.opensora_models.native.model.base_model import opensora_config

    choices = Choices(window=2, spatial_rotary=False, input_sq_size=256)
    model = model_of(files["random-v1.3.safetensors"], choices=choices)
    path = saved("ModelSave", "diffusion_models/chosen", model=model)
    shutil.copy(path, path.with_name("beside.safetensors"))
    path.with_name("beside.json").write_text('{"kernel_size": [8, 8, -1], "input_sq_size": 512}')
    for file in (path, path.with_name("beside.safetensors")):
        again = model_of(file)
        assert opensora_config(again) == opensora_config(model)
        assert torch.equal(video(again), video(model))
    other = model_of(path, choices=Choices(window=3))
    assert opensora_config(other).kernel_size == (3, 3, -1), "a person's choice still wins"


@pytest.mark.parametrize("name", TEXTS)
def test_clip_save(name: str, files: dict[str, Path]) -> None:
    clip = text_of(files[f"{name}.safetensors"])
    path = saved("CLIPSave", f"text_encoders/{name}", clip=clip)
    assert torch.equal(states(text_of(path)), states(clip))


@pytest.mark.parametrize("version", VERSIONS)
def test_checkpoint_save(core_knows: None, version: str, files: dict[str, Path]) -> None:
    import comfy.sd

    model = model_of(files[f"odd-random-v{version}.safetensors"])
    vae, clip = vae_of(files[f"odd-random-vae-v{version}.safetensors"]), text_of(files["random-t5.safetensors"])
    expected = (video(model), *pictures(vae))
    path = saved("CheckpointSave", f"checkpoints/{version}", model=model, clip=clip, vae=vae)
    assert equal((video(model_of(path)), *pictures(vae_of(path))), expected)
    with torch.inference_mode():
        core_model, _, core_vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    assert equal((video(core_model), *pictures(core_vae)), expected)


def test_checkpoint_save_with_both_text_encoders_of_20(core_knows: None, files: dict[str, Path]) -> None:
    import comfy.sd

    from opensora.opensora_models.native.text.clip import load_text_encoder

    model, vae = model_of(files["odd-random-v2.0.safetensors"]), vae_of(files["odd-random-vae-v1.3.safetensors"])
    clip = load_text_encoder(files["random-t5.safetensors"], clip_l=files["random-clip-l.safetensors"])

    def read(clip: Any) -> tuple[Tensor, Tensor]:
        return clip.encode_from_tokens(clip.tokenize("a red boat"), return_pooled=True)

    expected = (video(model), *read(clip))
    path = saved("CheckpointSave", "checkpoints/2.0", model=model, clip=clip, vae=vae)
    with torch.inference_mode():
        core_model, core_clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(path))
        assert equal((video(core_model), *read(core_clip)), expected)
    assert torch.equal(video(model_of(path)), expected[0])
