"""Open-Sora with ComfyUI's own sampler, sigma, latent and window nodes, in the real server with tiny weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from opensora.opensora_models.storage.pieces import about_in
from support.graphs import Prompt, complete, node, saved_latents
from support.server import PromptFailed

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server

Graph = Callable[..., dict[str, Tensor]]


def base(version: str = "1.2", frames: int = 17, batch: int = 1) -> Prompt:
    """Loaders, two prompts and an empty clip of 64x64 pixels."""
    return {
        "model": node("OSoraModelLoader", model_name=f"random-v{version}.safetensors"),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="a wave", negative_prompt="", model=["model", 0]),
        "empty": node("OSoraEmptyLatent", version=version, height=64, width=64, frames=frames, batch_size=batch),
        "shifted": node("OSoraModelSampling", model=["model", 0], latent=["empty", 0]),
        "sigmas": node("OSoraSigmas", model=["model", 0], latent=["empty", 0], steps=4),
    }


def ksampler(model: str = "shifted", latent: str = "empty", **changes: Any) -> dict[str, Any]:
    settings = {"seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "opensora", "denoise": 1.0}
    links = {"positive": ["text", 0], "negative": ["text", 1]}
    return node("KSampler", model=[model, 0], latent_image=[latent, 0], **settings | links | changes)


def sampled(
    guider: str = "guider", latent: str = "empty", sigmas: list[Any] | None = None, **changes: Any
) -> dict[str, Any]:
    links = {"noise": ["noise", 0], "sampler": ["flow", 0]} | changes
    return node(
        "SamplerCustomAdvanced",
        guider=[guider, 0],
        sigmas=sigmas or ["sigmas", 0],
        latent_image=[latent, 0],
        **links,
    )


def guided(model: str = "model", **changes: Any) -> Prompt:
    """Our guider and sampler, a noise, and core's euler."""
    return {
        "guider": node("OSoraGuider", model=[model, 0], positive=["text", 0], negative=["text", 1], cfg=4.0, **changes),
        "flow": node("OSoraFlowSampler"),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "noise": node("RandomNoise", noise_seed=3),
        "quiet": node("DisableNoise"),
    }


@pytest.fixture
def latents(server: TestServer, object_info: dict[str, Any]) -> Graph:
    """Run a graph and give the latents of the nodes named."""
    return lambda prompt, *names: saved_latents(server, object_info, prompt, *names)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_every_sampler_node_makes_the_same_clip(latents: Graph, version: str) -> None:
    prompt = base(version) | guided() | {
        "plain": ksampler(),
        "advanced": node(
            "KSamplerAdvanced", model=["shifted", 0], positive=["text", 0], negative=["text", 1],
            latent_image=["empty", 0], add_noise="enable", noise_seed=3, steps=4, cfg=4.0, sampler_name="euler",
            scheduler="opensora", start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable",
        ),
        "custom": sampled(),
        "custom_euler": sampled(sampler=["euler", 0]),
        "core_sigmas": node("BasicScheduler", model=["shifted", 0], scheduler="simple", steps=4, denoise=1.0),
        "custom_core_sigmas": sampled(sigmas=["core_sigmas", 0]),
        "ours": node(
            "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
            steps=4, cfg=4.0, seed=3, guidance="1.2",
        ),
    }  # fmt: skip
    names = ("plain", "advanced", "custom", "custom_euler", "custom_core_sigmas", "ours")
    made = latents(prompt, *names)
    assert made["plain"].shape == ((1, 4, 5, 8, 8) if version == "1.2" else (1, 16, 5, 8, 8))
    assert float(made["plain"].std()) > 0.1
    for name in names[1:]:
        close(made[name], made["plain"])


def test_a_run_in_two_parts_equals_one(latents: Graph) -> None:
    half = {
        "model": ["shifted", 0], "positive": ["text", 0], "negative": ["text", 1], "noise_seed": 3, "steps": 4,
        "cfg": 4.0, "sampler_name": "euler", "scheduler": "opensora",
    }  # fmt: skip
    whole_schedule = {"full_schedule": ["sigmas", 0]}
    prompt = base() | guided(oscillation="text", force_steps=1, **whole_schedule) | {
        "plain": ksampler(),
        "first": node(
            "KSamplerAdvanced", **half, latent_image=["empty", 0], add_noise="enable", start_at_step=0, end_at_step=2,
            return_with_leftover_noise="enable",
        ),
        "second": node(
            "KSamplerAdvanced", **half, latent_image=["first", 0], add_noise="disable", start_at_step=2,
            end_at_step=10000, return_with_leftover_noise="disable",
        ),
        "split": node("SplitSigmas", sigmas=["sigmas", 0], step=2),
        "whole": sampled(),
        "high": sampled(sigmas=["split", 0]),
        "low": sampled(latent="high", sigmas=["split", 1], noise=["quiet", 0]),
    }  # fmt: skip
    made = latents(prompt, "plain", "second", "whole", "low")
    close(made["second"], made["plain"])
    close(made["low"], made["whole"])
    assert not torch.allclose(made["low"], made["plain"], atol=1e-2)


def test_latent_batch_nodes(latents: Graph) -> None:
    prompt = base() | {
        "other": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=1),
        "pair": node("LatentBatch", samples1=["empty", 0], samples2=["other", 0]),
        "both": ksampler(latent="pair"),
        "again": node("RepeatLatentBatch", samples=["empty", 0], amount=2),
        "repeated": ksampler(latent="again"),
        "second": node("LatentFromBatch", samples=["again", 0], batch_index=1, length=1),
        "alone": ksampler(latent="second"),
        "ours": sampled(latent="again"),
        "ours_alone": sampled(latent="second"),
        "single": ksampler(),
    }
    made = latents(prompt | guided(), "both", "repeated", "alone", "single", "ours", "ours_alone")
    # ComfyUI numbers both parts of a LatentBatch 0, so they start from the same noise.
    close(made["both"], made["single"].repeat(2, 1, 1, 1, 1))
    close(made["repeated"][:1], made["single"])
    close(made["repeated"][1:], made["alone"])
    close(made["ours"][1:], made["ours_alone"])
    assert not torch.allclose(made["repeated"][0], made["repeated"][1], atol=1e-2)


def test_image_to_image_with_denoise(latents: Graph) -> None:
    prompt = base() | {
        "start": ksampler(seed=1),
        "light": ksampler(latent="start", denoise=0.25),
        "strong": ksampler(latent="start", denoise=0.9),
        "ours": node(
            "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["start", 0],
            steps=4, cfg=4.0, seed=3, guidance="1.2", denoise=0.25,
        ),
    }  # fmt: skip
    made = latents(prompt, "start", "light", "strong", "ours")
    light, strong = ((made[name] - made["start"]).norm() for name in ("light", "strong"))
    assert 0 < light < strong
    close(made["ours"], made["light"])


def placed(latent: str, strength: float = 0.0, **changes: Any) -> Prompt:
    """The latents of node ``latent`` as a reference, and the node that puts them into the empty clip."""
    settings = {"placement": "at position", "strength": strength} | changes
    return {
        "reference": node("OSoraReference", clip_latent=["empty", 0], latent=[latent, 0], **settings),
        "placed": node(
            "OSoraPlaceReferences", references=["reference", 0], latent=["empty", 0], positive=["text", 0],
            negative=["text", 1],
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("strength", "segment"), [(0.0, 0), (0.4, 0), (0.0, 1)])
def test_references_work_in_every_sampler_node(latents: Graph, strength: float, segment: int) -> None:
    prompt = base(frames=34) | guided() | placed("start", strength, segment=segment) | {
        "small": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=1),
        "start": ksampler(latent="small", seed=1),
        "plain": ksampler(latent="placed"),
        "custom": sampled(latent="placed"),
        "ours": node(
            "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
            references=["reference", 0], steps=4, cfg=4.0, seed=3, guidance="1.2",
        ),
        "free": ksampler(),
    }  # fmt: skip
    made = latents(prompt, "start", "plain", "custom", "ours", "free")
    close(made["custom"], made["plain"])
    close(made["ours"], made["plain"])
    kept = made["ours"][:, :, :5]
    if segment:
        close(made["ours"], made["free"])
    elif strength:
        assert not torch.allclose(kept, made["start"], atol=1e-2)
    else:
        assert torch.equal(kept, made["start"])


def test_given_frames_of_13_work_with_ksampler_guider_and_our_sampler(latents: Graph) -> None:
    given = {"positive": ["placed", 1], "negative": ["placed", 2]}
    settings = {"oscillation": "text and image", "force_steps": 1, "image_cfg": 5.0}
    prompt = base("1.3") | guided(**settings) | placed("start", position_unit="latent frame") | {
        "start": ksampler(latent="image", seed=1),
        "image": node("OSoraEmptyLatent", version="1.3", height=64, width=64, frames=1, batch_size=1),
        "patched": node("OSoraGuidance", model=["shifted", 0], **settings),
        "plain": ksampler("patched", **given),
        "unguided": ksampler("shifted", **given),
        "custom": sampled(sampler=["euler", 0]),
        "ours": node(
            "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
            references=["reference", 0], steps=4, cfg=4.0, seed=3, renoise_given=True,
        ),
        "not_renoised": node(
            "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
            references=["reference", 0], steps=4, cfg=4.0, seed=3, renoise_given=False,
        ),
    }  # fmt: skip
    prompt["guider"]["inputs"] |= given
    made = latents(prompt, "plain", "unguided", "custom", "ours", "not_renoised")
    close(made["custom"], made["plain"])
    assert not torch.allclose(made["plain"], made["unguided"], atol=1e-2)
    assert not torch.allclose(made["ours"], made["not_renoised"], atol=1e-2)


def test_context_windows_with_kept_frames(latents: Graph) -> None:
    prompt = base(frames=51) | guided(model="windows") | placed("start") | {
        "small": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=1),
        "start": ksampler(latent="small", seed=1),
        "windows": node(
            "ContextWindowsManual", model=["shifted", 0], context_length=10, context_overlap=5,
            context_schedule="standard_static", fuse_method="pyramid", dim=2,
        ),
        "whole": ksampler(latent="placed"),
        "windowed": ksampler("windows", "placed"),
        "custom": sampled(latent="placed"),
    }  # fmt: skip
    made = latents(prompt, "start", "whole", "windowed", "custom")
    assert made["windowed"].shape == made["whole"].shape == (1, 4, 15, 8, 8)
    assert not torch.allclose(made["windowed"], made["whole"], atol=1e-2)
    close(made["custom"], made["windowed"])
    close(made["windowed"][:, :, :5], made["start"])


def test_an_ordinary_pixel_mask_keeps_part_of_every_frame(latents: Graph) -> None:
    prompt = base() | {
        "start": ksampler(seed=1),
        "solid": node("SolidMask", value=1.0, width=64, height=64),
        "half": node("SolidMask", value=0.0, width=32, height=64),
        "mask": node("MaskComposite", destination=["solid", 0], source=["half", 0], x=0, y=0, operation="multiply"),
        "masked": node("SetLatentNoiseMask", samples=["start", 0], mask=["mask", 0]),
        "inpainted": ksampler(latent="masked"),
    }
    made = latents(prompt, "start", "inpainted")
    close(made["inpainted"][..., :4], made["start"][..., :4])
    assert (made["inpainted"][..., 4:] - made["start"][..., 4:]).abs().mean() > 0.1


def test_what_cannot_work_is_refused_before_sampling(server: TestServer, object_info: dict[str, Any]) -> None:
    def ours(model: str, latent: str) -> dict[str, Any]:
        links = {"positive": ["text", 0], "negative": ["text", 1], "latent": [latent, 0]}
        return node("OSoraSampler", model=[model, 0], **links, steps=2, cfg=4.0, seed=3)

    def failure(prompt: Prompt, name: str) -> str:
        save = {"save": node("SaveLatent", samples=[name, 0], filename_prefix="x")}
        return str(server.failure(complete(prompt | save, object_info)))

    wrong = base("1.3") | {
        "start": ksampler(seed=1),
        "other": node("OSoraModelLoader", model_name="random-v1.2.safetensors"),
        "wrong": ours("other", "start"),
    }
    assert "16 channels but the model is Open-Sora 1.2" in failure(wrong, "wrong")
    outside = base() | {"start": ksampler(seed=1)} | placed("start", position=5, position_unit="latent frame")
    assert "nearest good value is 4" in failure(outside, "placed")
    foreign = base("1.3") | {
        "start": ksampler(latent="other", seed=1),
        "other": node("OSoraEmptyLatent", version="1.3", height=96, width=64, frames=17, batch_size=1),
    }
    assert "nearest good size is 64x64" in failure(foreign | placed("start"), "placed")


def long_video(seed: int) -> Prompt:
    return base() | {
        "long": node(
            "OSoraLongVideo", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty15", 0],
            segments=3, steps=3, cfg=4.0, seed=seed,
        ),
        "empty15": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=51, batch_size=1),
    }  # fmt: skip


@pytest.mark.slow
def test_a_killed_server_goes_on_with_the_first_missing_segment(
    tmp_path: Path, tiny_models: Path, object_info: dict[str, Any], latents: Graph
) -> None:
    from support.server import TestServer

    whole = latents(long_video(11), "long")["long"]
    save = {"save": node("SaveLatent", samples=["long", 0], filename_prefix="long")}
    prompt = complete(long_video(11) | save, object_info)
    (tmp_path / "base").mkdir()
    server = TestServer(tmp_path / "base", tiny_models)
    store = tmp_path / "base" / "output" / "opensora_segments"
    server.start()
    process = server._process
    assert process is not None

    def kill(event: str, data: dict[str, Any]) -> None:
        if list(store.glob("*/segment_0001.safetensors")) and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(Exception):  # noqa: B017 (the connection breaks in one of several ways)
        server.watch(prompt, kill)
    process.wait()
    (folder,) = store.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("segment_*.safetensors")}
    assert "segment_0001.safetensors" in before
    assert about_in(folder / "check_segment_0000.safetensors.json") == base()["text"]["inputs"]["prompt"]
    again = TestServer(tmp_path / "base", tiny_models)
    again.start()
    try:
        (item,) = again.run(prompt)["save"]["latents"]
        assert torch.equal(load(again.file(item))["latent_tensor"], whole)
    finally:
        again.stop()
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("segment_*.safetensors")}
    assert {name: after[name] for name in before} == before
    assert len(after) == 3
    assert load_file(folder / "segment_0002.safetensors")["latent"].shape == (1, 4, 15, 8, 8)


def test_an_interrupt_ends_our_sampler_within_a_step_and_the_next_run_works(
    server: TestServer, object_info: dict[str, Any], latents: Graph
) -> None:
    ours = node(
        "OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
        steps=1000, cfg=4.0, seed=3,
    )  # fmt: skip
    prompt = base() | {"ours": ours, "save": node("SaveLatent", samples=["ours", 0], filename_prefix="x")}
    steps: list[int] = []

    def interrupt(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data.get("node") == "ours":
            steps.append(data["value"])
            if len(steps) == 1:
                server.interrupt(str(data["prompt_id"]))

    with pytest.raises(PromptFailed) as failed:
        server.watch(complete(prompt, object_info), interrupt)
    assert failed.value.type == "interrupted"
    assert steps[-1] < 500
    prompt["ours"]["inputs"]["steps"] = 2
    assert bool(latents(prompt, "ours")["ours"].isfinite().all())
