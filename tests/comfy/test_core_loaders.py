"""Our files in core's own loader nodes: they work as in ours, or are refused in one sentence that names ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.native import empty, randn, sample
from support.pack import PACK_ROOT
from support.saving import saved

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

DEMO = PACK_ROOT / "demo" / "models"
VERSIONS = ("1.2", "1.3")
LOADERS = {
    "CheckpointLoaderSimple": ("checkpoints", "ckpt_name", "load_checkpoint", {}),
    "VAELoader": ("vae", "vae_name", "load_vae", {}),
    "CLIPLoader": ("text_encoders", "clip_name", "load_clip", {"type": "stable_diffusion"}),
    "UNETLoader": ("diffusion_models", "unet_name", "load_unet", {"weight_dtype": "default"}),
    "DualCLIPLoader": ("text_encoders", "clip_name1", "load_clip", {"type": "flux"}),
}
SINGLE = {"vae": "VAELoader", "text_encoders": "CLIPLoader", "diffusion_models": "UNETLoader"}
"""Core's loader of a file alone, by the folder it lies in."""


@pytest.fixture(autouse=True)
def core_knows(comfy: Path) -> Iterator[None]:
    """Core's loaders as the pack teaches them, put back afterwards."""
    from opensora.opensora_models.native.core import detection as core_detection

    before = core_detection.is_registered()
    core_detection.register()
    yield
    if not before:
        core_detection.unregister()


def core_loads(node: str, path: Path, **changes: Any) -> tuple[Any, ...]:
    """What core's node makes of a file."""
    import folder_paths

    import nodes

    category, name, function, others = LOADERS[node]
    folder_paths.add_model_folder_path(category, str(path.parent))
    with torch.inference_mode():
        return getattr(nodes.NODE_CLASS_MAPPINGS[node](), function)(**{name: path.name, **others, **changes})


def found(kind: str, seed: str, models: Path, version: str = "") -> Path:
    """A tiny file: a demo model or a random one."""
    root = DEMO if seed == "opensora-tiny" else models
    part = {"vae": f"vae-v{version}", "diffusion_models": f"v{version}", "text_encoders": "t5"}[kind]
    return root / kind / f"{seed}-{part}.safetensors"


def ours(models: Path, seed: str, version: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of our own loaders."""
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.text.clip import load_text_encoder
    from opensora.opensora_models.native.vae.vae import load_vae

    with torch.inference_mode():
        model = load_model(found("diffusion_models", seed, models, version))
        vae = load_vae(found("vae", seed, models, version))
        return model, load_text_encoder(found("text_encoders", seed, models)), vae


def results(model: Any, clip: Any, vae: Any) -> list[Tensor]:
    """A prompt encoded, a clip sampled with it, and pictures."""
    from opensora.opensora_models.native.model.base_model import opensora_config

    text = clip.encode_from_tokens(clip.tokenize("a red ball"))
    latents = sample(model, empty(opensora_config(model).version), [[text, {}]], [[text, {}]], steps=2)
    with torch.inference_mode():
        return [text, latents, vae.decode(latents), vae.encode(randn(17, 32, 32, 3).abs().clamp(0, 1))]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("version", "seed"), [("1.2", "opensora-tiny"), ("1.3", "opensora-tiny"), ("1.3", "random")])
def test_a_saved_checkpoint_works_in_core_and_in_ours(version: str, seed: str, tiny_models: Path) -> None:
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.text.clip import load_text_encoder
    from opensora.opensora_models.native.vae.vae import OpenSoraVAE, load_vae

    model, clip, vae = ours(tiny_models, seed, version)
    expected = results(model, clip, vae)
    path = saved("CheckpointSave", f"checkpoints/{seed}-{version}", model=model, clip=clip, vae=vae)
    core_model, core_clip, core_vae = core_loads("CheckpointLoaderSimple", path)
    assert type(core_vae) is OpenSoraVAE
    assert same(results(core_model, core_clip, core_vae), expected)
    with torch.inference_mode():
        again = load_model(path), load_text_encoder(path), load_vae(path)
    assert same(results(*again), expected)
    assert same(results(model, clip, core_loads("VAELoader", path)[0]), expected)
    assert same(results(core_loads("UNETLoader", path)[0], clip, vae), expected)


@pytest.mark.parametrize(("version", "seed"), [("1.2", "opensora-tiny"), ("1.3", "random")])
def test_single_files_work_in_core(version: str, seed: str, tiny_models: Path) -> None:
    expected = results(*ours(tiny_models, seed, version))
    (model,) = core_loads("UNETLoader", found("diffusion_models", seed, tiny_models, version))
    (clip,) = core_loads("CLIPLoader", found("text_encoders", seed, tiny_models))
    (vae,) = core_loads("VAELoader", found("vae", seed, tiny_models, version))
    assert same(results(model, clip, vae), expected)


@pytest.mark.parametrize(
    "path",
    sorted(each for each in DEMO.rglob("*.safetensors") if each.parent.name in SINGLE),
    ids=lambda path: path.stem,
)
def test_every_file_that_comes_with_the_pack_loads_in_core(path: Path) -> None:
    node = SINGLE[path.parent.name]
    if path.stem.endswith("clip-l"):  # core knows one size of CLIP-L, and ours beside our T5 only
        (t5,) = path.parent.glob("*-t5.safetensors")
        (part,) = core_loads("DualCLIPLoader", path, clip_name2=t5.name)
    else:
        (part,) = core_loads(node, path)
    assert part is not None and part.patcher if node != "UNETLoader" else part.model


def test_a_narrow_vae_of_2_0_is_the_same_in_core(tiny_models: Path) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae

    for path in (found("vae", "opensora-tiny", tiny_models, "2.0"), found("vae", "random", tiny_models, "2.0")):
        latent = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            (core,) = core_loads("VAELoader", path)
            assert torch.equal(core.decode(latent), load_vae(path).decode(latent)), path.name


def test_copies_for_other_devices_are_equal(tiny_models: Path) -> None:
    (vae,) = core_loads("VAELoader", found("vae", "random", tiny_models, "1.3"))
    if getattr(vae.patcher, "cached_patcher_init", None) is None:
        pytest.skip("this ComfyUI keeps no way to load a VAE again")
    factory, arguments = vae.patcher.cached_patcher_init[:2]
    twin = factory(*arguments).model
    assert twin is not vae.first_stage_model
    weights = vae.first_stage_model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in twin.state_dict().items())


def test_a_model_alone_is_a_checkpoint_without_the_rest(tiny_models: Path) -> None:
    model, clip, vae = ours(tiny_models, "random", "1.2")
    path = saved("ModelSave", "checkpoints/alone", model=model)
    core_model, core_clip, core_vae = core_loads("CheckpointLoaderSimple", path)
    assert core_clip is None and core_vae.first_stage_model is None
    assert same(results(core_model, clip, vae), results(model, clip, vae))


def changed(path: Path, folder: Path, *gone: str, **other: Tensor) -> Path:
    """A copy of a file without some tensors and with others."""
    weights = {name: value for name, value in load_file(path).items() if not name.startswith(gone)}
    for name, value in other.items():
        weights[name.replace("__", ".")] = value
    target = folder / f"changed-{path.name}"
    save_file(weights, target)
    return target


DAMAGED = (
    *(
        "temporal half",
        "short vae",
        "wide vae",
        "flat vae",
        "short model",
        "wide model",
        "gap",
        "short t5",
        "wordless t5",
    ),
    *("wide t5", "checkpoint"),
)
MODEL, VAE, TEXT = (f"Open-Sora Load {kind}" for kind in ("Model", "VAE", "Text Encoder"))


def damaged_file(name: str, models: Path, folder: Path) -> tuple[str, Path, str]:
    """Core's node, a file of ours it cannot load, and the loader its sentence must name."""
    vae12, vae13 = (found("vae", "random", models, version) for version in VERSIONS)
    t5, model = found("text_encoders", "random", models), found("diffusion_models", "random", models, "1.3")
    wide, norm = {"encoder__conv_in__conv__weight": torch.zeros(7, 3, 3, 3, 3)}, "encoder__final_layer_norm__weight"
    makers: dict[str, tuple[str, Callable[[], Path], str]] = {
        "temporal half": ("VAELoader", lambda: changed(vae12, folder, "spatial_vae."), VAE),
        "short vae": ("VAELoader", lambda: changed(vae13, folder, "decoder.conv_out"), VAE),
        "wide vae": ("VAELoader", lambda: changed(vae13, folder, **wide), VAE),
        "flat vae": ("VAELoader", lambda: changed(vae12, folder, scale=torch.zeros(1, 4, 1, 1, 1)), VAE),
        "short model": ("UNETLoader", lambda: changed(model, folder, "rope.freqs"), MODEL),
        "wide model": ("UNETLoader", lambda: changed(model, folder, t_block__1__bias=torch.zeros(3)), MODEL),
        "gap": ("UNETLoader", lambda: changed(model, folder, "spatial_blocks.0."), MODEL),
        "short t5": ("CLIPLoader", lambda: changed(t5, folder, "encoder.final_layer"), TEXT),
        "wordless t5": ("CLIPLoader", lambda: changed(t5, folder, "shared."), TEXT),
        "wide t5": ("CLIPLoader", lambda: changed(t5, folder, **{norm: torch.zeros(3)}), TEXT),
        "checkpoint": ("CheckpointLoaderSimple", lambda: changed(model, folder, "t_block"), MODEL),
    }
    assert set(makers) == set(DAMAGED)
    node, make, loader = makers[name]
    return node, make(), loader


@pytest.mark.parametrize("name", DAMAGED)
def test_what_core_cannot_load_names_our_loader(name: str, tiny_models: Path, tmp_path: Path) -> None:
    node, path, loader = damaged_file(name, tiny_models, tmp_path)
    with pytest.raises(ValueError) as error:
        core_loads(node, path)
    text = str(error.value)
    assert loader in text and "\n" not in text and len(text) < 500 and text.endswith(".")


def test_two_encoders_at_once_are_refused(tiny_models: Path, tmp_path: Path) -> None:
    import comfy.sd

    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 4)}, tmp_path / "clip_l.safetensors")
    paths = [str(tmp_path / "clip_l.safetensors"), str(found("text_encoders", "random", tiny_models))]
    with pytest.raises(ValueError, match="cannot combine with others. .*Open-Sora Load Text Encoder"):
        comfy.sd.load_clip(paths, clip_type=comfy.sd.CLIPType.FLUX)


def test_the_pair_of_2_0_in_core(tiny_models: Path) -> None:
    """What DualCLIPLoader gives of the tiny pair is what our loader gives."""
    import comfy.sd

    from opensora.opensora_models.native.text.clip import load_text_encoder

    folder = tiny_models / "text_encoders"
    t5, clip = folder / "random-t5.safetensors", folder / "random-clip-l.safetensors"
    with torch.inference_mode():
        orders = ([str(t5), str(clip)], [str(clip), str(t5)])
        core = [comfy.sd.load_clip(order, clip_type=comfy.sd.CLIPType.FLUX) for order in orders]
        own = load_text_encoder(t5, clip_l=clip)
        encoded = [each.encode_from_tokens(each.tokenize("a cat"), return_pooled=True) for each in (own, *core)]
    assert encoded[0][0].shape == (1, 512, 64) and encoded[0][1].shape == (1, 16)
    for states, pooled in encoded[1:]:
        assert torch.equal(states, encoded[0][0]) and torch.equal(pooled, encoded[0][1])


def test_other_models_are_left_to_core() -> None:
    """Names of other models, among them those that share most of ours, never reach our code."""
    import comfy.sd

    from opensora.opensora_models.native.core import parts as core_parts

    causal = {"encoder.conv_in.conv.weight": (8, 3, 3, 3, 3), "encoder.down.0.block.0.norm1.weight": (8,)}
    causal |= {"decoder.up.0.block.0.norm1.weight": (8,), "decoder.up.1.upsample.conv.conv.weight": (8, 8, 3, 3, 3)}
    for shapes in (causal, {"decoder.conv_in.weight": (8, 4, 3, 3)}, {"first_stage_model.decoder.conv_in.bias": (8,)}):
        assert core_parts.vae_recipe({name: torch.zeros(shape) for name, shape in shapes.items()}, None) is None
    key = "encoder.block.{}.layer.1.DenseReluDense.{}.weight"
    embedding = {"shared.weight": torch.zeros(32128, 1)}
    embedding["encoder.block.0.layer.0.SelfAttention.k.weight"] = torch.zeros(1, 1)
    xxl = embedding | {key.format(23, "wi_1"): torch.zeros(10240, 1), key.format(0, "wi_0"): torch.zeros(10240, 1)}
    base = embedding | {key.format(0, "wi"): torch.zeros(4, 1)}
    byte_words = embedding | {key.format(0, "wi_0"): torch.zeros(4, 1), "shared.weight": torch.zeros(384, 1)}
    for state_dict in (xxl, base, byte_words, {"model.embed_tokens.weight": torch.zeros(1, 1)}):
        assert not core_parts.is_our_t5(state_dict)

    class OtherVAE(comfy.sd.VAE):
        """Of another pack."""

    other = OtherVAE(sd={})
    assert type(other) is OtherVAE and other.first_stage_model is None


def test_the_switch_leaves_core_alone(monkeypatch: pytest.MonkeyPatch, tiny_models: Path) -> None:
    import comfy.sd

    from opensora.opensora_models.native.core import detection as core_detection
    from opensora.opensora_models.native.core import startup

    core_detection.register()
    core_detection.unregister()
    assert not any(replacement.is_there for replacement in core_detection.REPLACEMENTS)
    monkeypatch.setenv(core_detection.SWITCH, "0")
    startup.start()
    assert not core_detection.is_registered()
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(Exception):  # noqa: B017 - whatever core says
            comfy.sd.VAE(sd=load_file(found("vae", "random", tiny_models, "1.2"))).throw_exception_if_invalid()
    finally:
        logging.disable(logging.NOTSET)


def test_settings_in_the_working_folder_are_not_the_files(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"groups": 1}')
    (vae,) = core_loads("VAELoader", found("vae", "random", tiny_models, "1.3"))
    assert vae.configs[0].groups == 32
