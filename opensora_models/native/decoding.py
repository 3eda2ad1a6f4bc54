"""Decoding and encoding for the nodes: progress, interruption, memory, files. Group by group throughout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ..frames import SPATIAL_FACTOR
from ..vae.budget import Job, candidate_plans, decode_bytes, encode_bytes, fitting
from ..vae.distribution import mode, seeded
from ..vae.guards import check_latents, check_num_frames, check_pixels
from ..vae.latent_file import ENDING, save_latent
from ..vae.strips import Strips
from ..vae.video_file import FORMATS, GroupedVideo, VideoJob, exact_rate, unfinished_videos
from .memory import check_frames_fit
from .outputs import OutputFile, next_output
from .vae import OpenSoraVAE

logger = logging.getLogger("opensora")

# What the nodes offer for the size of the strips: automatic, one piece per layer, or the area of a tile in pixels.
AUTO, WHOLE = "auto", "off"
TILE_SIZES = (AUTO, WHOLE, "1024", "512", "256", "128")
VAE_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
UNFINISHED = "opensora_unfinished"
ONE_PIECE = Strips(None, images=4)


def own_vae(vae: Any) -> OpenSoraVAE:
    """The VAE if it is one of ours, else ValueError."""
    if not isinstance(vae, OpenSoraVAE):
        raise ValueError(
            f"This node streams Open-Sora VAEs and was given a {type(vae).__name__}; use Open-Sora Load VAE, or "
            "ComfyUI's own VAE nodes for other models."
        )
    return vae


def chosen_plan(vae: OpenSoraVAE, tile: str) -> Strips | None:
    """The plan of a menu entry; None lets free memory decide."""
    if tile == AUTO:
        return None
    return ONE_PIECE if tile == WHOLE else vae.tile_plan(int(tile), int(tile))


def _prepare(vae: OpenSoraVAE, job: Job, plan: Strips | None, *, decoding: bool) -> Strips:
    """Make room on the device, load the weights, and settle the plan by what is then free."""
    measure = decode_bytes if decoding else encode_bytes
    needed = measure(vae.network, job, plan or candidate_plans()[0])
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    if plan is not None:
        return plan
    free = vae.patcher.get_free_memory(vae.device)
    settled = fitting(vae.network, job, free, decoding=decoding)
    logger.info("%s %d x %d in %s, %.1f GB free.", "Decoding" if decoding else "Encoding", job.width, job.height,
                settled, free / 2**30)  # fmt: skip
    return settled


def decoded_groups(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, plan: Strips | None, first_group: int = 0
) -> Iterator[Tensor]:
    """Yield images [B, t, H, W, 3] in [0, 1] on the output device, group after group, with progress."""
    network = vae.network
    check_latents(samples, network.version, network.latent_channels)
    if num_frames is not None:
        check_num_frames(network.version, samples.shape[2], num_frames)
    plan = _prepare(vae, Job.decoding(samples.shape, vae.vae_dtype.itemsize), plan, decoding=True)
    latents = network.to_own(samples.to(vae.device, vae.vae_dtype))
    groups = len(network.decode_slices(samples.shape[2]))
    progress = comfy.utils.ProgressBar(groups)
    for index, pixels in enumerate(network.decoded(latents, num_frames, plan, first_group=first_group)):
        check_pixels(pixels)
        images = vae.process_output(pixels.to(vae.output_device, torch.float32, copy=True))
        del pixels
        progress.update_absolute(first_group + index + 1)
        yield images.movedim(1, -1)
        comfy.model_management.throw_exception_if_processing_interrupted()


def decode_images(vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, tile: str) -> Tensor:
    """Latents [B, C, T, h, w] to images [B·F, H, W, 3] in [0, 1]; memory for the result is taken once."""
    count = num_frames or vae.network.frames_of(samples.shape[2])
    batch, height, width = samples.shape[0], *(SPATIAL_FACTOR * size for size in samples.shape[-2:])
    check_frames_fit((batch, 3, count, height, width))
    images: Tensor | None = None
    done = 0
    for group in decoded_groups(vae, samples, num_frames, chosen_plan(vae, tile)):
        if images is None:
            images = torch.empty((batch, count, height, width, 3), device=vae.output_device)
        images[:, done : done + group.shape[1]] = group
        done += group.shape[1]
    assert images is not None
    return images.flatten(0, 1)


def encode_images(vae: OpenSoraVAE, images: Tensor, tile: str, seed: int | None) -> Tensor:
    """Images [F, H, W, 3] in [0, 1] to latents [1, C, T, h, w]; sides are cropped to multiples of 8 at the centre."""
    if images.ndim != 4 or images.shape[0] < 1 or min(images.shape[1:3]) < SPATIAL_FACTOR:
        raise ValueError(
            f"The VAE encodes images [frames, height, width, 3] of at least {SPATIAL_FACTOR} x {SPATIAL_FACTOR} "
            f"pixels; {list(images.shape)} was given."
        )
    pixels = vae.vae_encode_crop_pixels(images).movedim(-1, 0).unsqueeze(0)
    job = Job.encoding(pixels.shape, vae.vae_dtype.itemsize)
    plan = _prepare(vae, job, chosen_plan(vae, tile), decoding=False)
    network = vae.network
    draw = mode if seed is None else seeded(seed)
    slices = network.encode_slices(pixels.shape[2])
    progress = comfy.utils.ProgressBar(len(slices))
    parts = []
    for part in slices:
        group = vae.process_input(pixels[:, :, part]).to(vae.device, vae.vae_dtype)
        parts.append(network.encode_group(group, plan, draw).to(vae.output_device, torch.float32))
        progress.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()
    return network.from_own(torch.cat(parts, dim=2))


def workflow_metadata(hidden: Any) -> dict[str, Any] | None:
    """Prompt and workflow as ComfyUI's Save Video stores them; None where the user switched metadata off."""
    if args.disable_metadata:
        return None
    metadata = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        metadata["prompt"] = hidden.prompt
    return metadata


def latent_name(samples: Tensor, prefix: str, hidden: Any) -> OutputFile:
    """The next free name for latents; ``hidden`` are the node's hidden inputs, read by placeholders."""
    height, width = (SPATIAL_FACTOR * size for size in samples.shape[-2:])
    return next_output(prefix, ENDING, hidden, (width, height))


def keep_latent(
    vae: OpenSoraVAE, samples: Tensor, file: OutputFile, notes: Mapping[str, Any], metadata: Mapping[str, Any] | None
) -> None:
    """Save latents before anything can fail, and say where."""
    check_latents(samples, vae.network.version, vae.network.latent_channels)
    save_latent(file.path, samples, {"version": vae.network.version, **notes}, metadata)
    logger.info("Latents saved to '%s'.", file.path)


def decode_to_video(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, frame_rate: float, form: str, quality: int, tile: str,
    latent_file: OutputFile, metadata: Mapping[str, Any] | None,
) -> OutputFile:  # fmt: skip
    """Decode a clip straight into a file beside its latents; continues a run of the same job that was cut off."""
    if samples.shape[0] != 1:
        raise ValueError(
            f"A video file holds one clip, these latents hold {samples.shape[0]}; pick one with Latent From Batch."
        )
    kind, rate = FORMATS[form], exact_rate(frame_rate)
    store = Path(folder_paths.get_output_directory()) / UNFINISHED
    settings = (vae.fingerprint, vae.network.overlap, num_frames, rate, form, quality, str(vae.vae_dtype))
    job = VideoJob.of(store, samples, *settings)
    video = GroupedVideo(job.parts, kind, rate, quality)
    groups, done = len(vae.network.decode_slices(samples.shape[2])), video.done()
    if done:
        logger.info("Continuing an unfinished video: %d of %d groups are there.", done, groups)
    if done < groups:
        stream = decoded_groups(vae, samples, num_frames, chosen_plan(vae, tile), first_group=done)
        for number, images in enumerate(stream, done):
            video.write(number, images[0])
    file = OutputFile(latent_file.folder, latent_file.path.stem + kind.ending, latent_file.subfolder)
    video.join(groups, file.path, metadata)
    job.finish()
    count, size = unfinished_videos(store)
    if count:
        logger.info("Unfinished videos of other latents: %d, %.0f MB in '%s'. Decoding those latents again finishes "
                    "them; deleting the folder gives the space back.", count, size / 1e6, store)  # fmt: skip
    return file
