"""The released clips through a real ComfyUI: its KSampler, its memory management, the pack's loader."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _clips import CLIPS, Clip, bytes_of
from _gpu_jobs import Job, Place, Result, figures
from safetensors.torch import save_file

from opensora.opensora_models.releases.known import RELEASES
from support.comfyui import use_comfyui

STEPS = 3


def comfyui_jobs(root: Path, dry: bool) -> Iterator[Job]:
    """KSampler for a few steps of every clip."""
    os.environ["COMFYUI_PATH"] = str(root)
    if not dry:
        os.environ["OPENSORA_TEST_GPU"] = "1"
    use_comfyui()
    for clip in CLIPS.values():
        chosen = replace(clip.shrunk(), latents=(5, 8, 8)) if dry else clip
        yield Job(f"{clip.name}: ComfyUI's KSampler", 2.0 if dry else 60.0, partial(sampled, chosen))


def sampled(clip: Clip, place: Place) -> Result:
    """Seconds of a step and the most memory, weights included, of a run of a few steps with guidance."""
    import comfy.model_management
    import comfy.sample

    from opensora.opensora_models.native.model.loading import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        weights = write_network(clip, place, path)
        model = load_model(path)
    latent = torch.zeros(1, RELEASES[clip.release].latents.channels, *clip.latents)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    prompts = [text_of(clip, seed) for seed in (1, 2)]
    moments: list[float] = []
    cuda = place.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(place.device)

    def noted(*_: Any) -> None:
        place.wait()
        moments.append(time.perf_counter())

    comfy.sample.sample(
        model, noise, STEPS, 7.0, "euler", "simple", *prompts, latent, callback=noted, disable_pbar=True, seed=1
    )
    step = (moments[-1] - moments[0]) / (len(moments) - 1)
    peak = torch.cuda.max_memory_allocated(place.device) if cuda else None
    comfy.model_management.unload_all_models()
    found = {"seconds": step, "peak_bytes": peak, "peak_is": "with weights", **figures(clip, step / 2)}
    return {"weights_bytes": weights, "target_run": clip.target, "2 row(s)": found}


def write_network(clip: Clip, place: Place, path: Path) -> int:
    """A released file of random weights; its bytes."""
    network = place.networks.of(clip)
    module = "mmdit" if hasattr(network, "double_blocks") else "stdit3"
    keys = __import__(f"opensora.opensora_models.{module}.keys", fromlist=["to_checkpoint_key"])
    state = {keys.to_checkpoint_key(name): value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path)
    size = bytes_of(network)
    del network
    place.networks.clear()
    return size


def text_of(clip: Clip, seed: int) -> list[list[Any]]:
    """CONDITIONING of random text states."""
    generator = torch.Generator().manual_seed(seed)
    config = clip.config
    width = getattr(config, "caption_channels", None) or config.context_in_dim
    pooled = torch.randn(1, getattr(config, "vec_in_dim", 16), generator=generator)
    return [[torch.randn(1, clip.text_tokens, width, generator=generator), {"pooled_output": pooled}]]
