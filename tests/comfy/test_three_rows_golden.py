"""Every recorded three-row run of Open-Sora 2.0 inside ComfyUI, by our MODEL, references and guidance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from golden.families.mmdit import config_of
from golden.families.sampling_loops_v2 import guidance_of
from golden.families.sampling_v2 import times_of
from golden.runner import Case, fill_by_rule, load_case
from opensora.opensora_models.mmdit.keys import to_checkpoint_key
from opensora.opensora_models.mmdit.tokens import pack
from opensora.opensora_models.releases.guidance import Guidance
from opensora.opensora_models.sampling.three_rows import rows_of, run_scales
from support.pack import PACK_ROOT

pytestmark = pytest.mark.comfy

CASES = [
    path
    for path in sorted((PACK_ROOT / "tests" / "golden" / "cases" / "v2").glob("loop_*.safetensors"))
    if path.stem != "loop_flux_image"  # one row with embedded guidance: core's Flux makes that picture
]
WAYS = ("our guider, core's euler", "our guider and sampler", "patched MODEL, core's guider")


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    """The parts under test, imported once ComfyUI is there."""
    import comfy.samplers
    from comfy.model_patcher import ModelPatcher

    from opensora.opensora_models.native.model import latent_formats, mmdit_model, written_back
    from opensora.opensora_models.native.sampling import clips, guiders, reference_inputs, samplers

    return SimpleNamespace(
        clips=clips, core=comfy.samplers, formats=latent_formats, guiders=guiders, inputs=reference_inputs,
        model=mmdit_model, patcher=ModelPatcher, samplers=samplers, written_back=written_back,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def model_of(case: Case, native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The case's network as a MODEL; its latents are normalised already and have few channels."""
    import comfy.latent_formats

    class Plain(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = case.need("noise").shape[1], 3

    release = "2.0" if case.config["model"]["patch_size"] == 2 else "2.0 high compression"
    monkeypatch.setitem(native.formats.LATENT_FORMATS, release, Plain)
    config = native.model.MMDiTModelConfig.of(config_of(case.config["model"]), release)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    fill_by_rule(model.diffusion_model, case, to_checkpoint_key)
    model.diffusion_model.requires_grad_(False)
    patcher = native.patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    native.written_back.add_to(patcher)
    return patcher


def references_of(case: Case, native: SimpleNamespace) -> Any:
    """The case's references in the places that the words of the Reference node stand for."""
    from opensora.opensora_models.sampling.references import Reference

    latents = [value for _, value in sorted(case.with_prefix("in.ref_").items())]
    first, last = latents[0] if latents else None, latents[-1] if latents else None
    kind = case.config["cond_type"]
    places = {
        "t2v": [],
        "i2v_head": [(first, 0)],
        "i2v_tail": [(last, -1)],
        "i2v_loop": [(first, 0), (last, -1)],
        "v2v_head": [(first, 0)],
        "v2v_head_easy": [(first, 0)],
        "v2v_tail": [(last, -(last.shape[1] if last is not None else 0))],
        "v2v_tail_easy": [(last, -(last.shape[1] if last is not None else 0))],
    }[kind]
    return native.inputs.ReferenceChain(tuple(Reference(latent, start) for latent, start in places))


def prompts(case: Case) -> tuple[Any, Any]:
    """The prompt and the negative prompt."""
    states, pooled = case.need("txt"), case.need("y_vec")
    return tuple([[states[row : row + 1], {"pooled_output": pooled[row : row + 1]}]] for row in (0, 1))


def guider_of(native: SimpleNamespace, way: str, model: Any, settings: Guidance, pair: tuple[Any, Any]) -> Any:
    """What guides: ours, or core's around a MODEL with our patch.

    The patch takes the text scale from the sampler, which has one for all steps: oscillation of the text is its own.
    """
    if way != WAYS[2]:
        guider = native.guiders.OpenSoraGuider(model, settings)
    else:
        guider = native.core.CFGGuider(native.guiders.patch_guidance(model, settings))
        guider.set_cfg(settings.text_scale)
    guider.set_conds(*pair)
    return guider


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_equals_the_original(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, path: Path, way: str) -> None:
    case = load_case(path)
    noise, levels, settings = case.need("noise"), times_of(case.config), guidance_of(case.config)
    model = model_of(case, native, monkeypatch)
    chain, release = references_of(case, native), model.model.release
    # All cases leave "fades" on for clips as well, where the original does not fade.
    settings = Guidance(**{**vars(settings), "fade_image": case.config["scale_temporal_osci"]})
    clip = native.clips.ClipSize(release, 8 * noise.shape[3], 8 * noise.shape[4], 17, noise.shape[2])
    latent = {"samples": torch.zeros_like(noise)}
    placed = native.inputs.place_references(chain, latent, clip, *prompts(case))
    rows = count_rows(model, monkeypatch)
    seen: list[Tensor] = []
    done = guider_of(native, way, model, settings, (placed.positive, placed.negative)).sample(
        noise,
        placed.latent["samples"],
        native.samplers.sampler(renoise_given=True) if way == WAYS[1] else native.core.sampler_object("euler"),
        levels,
        callback=lambda step, denoised, x, total: seen.append(x.clone()),
        disable_pbar=True,
        seed=1,
    )
    tolerance = {name: case.info["tolerances"][name] for name in ("atol", "rtol")}
    got = torch.cat([pack(x, case.config["model"]["patch_size"]) for x in seen])
    torch.testing.assert_close(got, case.expected["latents_packed"], **tolerance)
    torch.testing.assert_close(done, case.expected["final_latent"], **tolerance)
    scales = run_scales(guidance_of(case.config), levels.tolist(), noise.shape[2])
    assert sum(rows) == rows_of(scales, bool(chain.references))


AS_RELEASED = {"text_osci": True, "image_osci": True, "scale_temporal_osci": True}
RELEASED = [path for path in CASES if AS_RELEASED.items() <= load_case(path).config.items()]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_the_sampler_node_equals_the_original(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """Schedule, places, preset and write-back are the node's own; only the noise is the recorded one."""
    import comfy.sample

    from opensora.nodes.sampling import Sampler

    case = load_case(path)
    noise, settings = case.need("noise"), case.config
    model = model_of(case, native, monkeypatch)
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *args: noise)
    positive, negative = prompts(case)
    done, report = Sampler.execute(
        model=model, positive=positive, negative=negative, steps=settings["num_steps"], cfg=settings["guidance"],
        latent={"samples": torch.zeros_like(noise), "opensora_release": model.model.release.id}, seed=1,
        references=references_of(case, native), denoise=1.0, guidance="automatic", image_cfg=settings["guidance_img"],
        renoise_given=True,
    ).result  # fmt: skip
    tolerance = {name: case.info["tolerances"][name] for name in ("atol", "rtol")}
    torch.testing.assert_close(done["samples"], case.expected["final_latent"], **tolerance)
    assert "experiment" not in report


def count_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every call of the network."""
    network, rows = model.model.diffusion_model, []
    original = network.forward

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(x.shape[0])
        return original(x, *args, **kwargs)

    monkeypatch.setattr(network, "forward", counted)
    return rows
