"""Decoding and encoding for the nodes: progress, interruption, memory, files. Group by group throughout."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ...releases.groups import SPATIAL_FACTOR
from ...storage.locks import one_writer, remove_if_idle
from ...vae.budget import Job, candidate_plans, decode_bytes, encode_bytes, fitting
from ...vae.distribution import mode, seeded
from ...vae.guards import check_latents, check_num_frames, check_numbers, check_pixels
from ...vae.latent_file import ENDING, save_new_latent
from ...vae.strips import Strips
from ...vae.video_file import FORMATS, KEPT, GroupedVideo, PartsMissing, VideoJob, exact_rate, unfinished_videos
from ..identity import model_identity, vae_parts
from ..memory import check_frames_fit
from ..messages import tell
from ..outputs import OutputFile, next_output
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
APART = "apart-"
ATTEMPTS = 3
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
) -> Generator[Tensor, None, None]:
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
    vae: OpenSoraVAE, samples: Tensor, choose: Callable[[], OutputFile], notes: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> OutputFile:  # fmt: skip
    """Save latents before anything can fail, and say where; ``choose`` gives the next free name.

    Latents of another model than the VAE's are saved as well: sampling them was work. ValueError if they hold no
    numbers, which nothing can go on from.
    """
    check_numbers(samples)
    fits = samples.ndim == 5 and samples.shape[1] == vae.network.latent_channels
    version = {"version": vae.network.version} if fits else {}
    file = save_new_latent(choose, samples, {**version, **notes}, metadata)
    logger.info("Latents saved to '%s'.", file.path)
    return file


@contextmanager
def behind(kept: OutputFile | None) -> Iterator[None]:
    """What is refused in here is known too late to spare the sampling: the sentence says where to go on from."""
    try:
        yield
    except ValueError as error:
        if kept is None:
            raise
        raise ValueError(
            f"{error} The latents are kept: go on from '{kept.listed}' with Open-Sora Load Latent."
        ) from error


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
    plan = chosen_plan(vae, tile)
    settings = {"frames": num_frames, "rate": rate, "format": kind, "quality": quality, "plan": plan}
    job = _job(store, vae, samples, settings)
    names = (f"{latent_file.path.stem}{number}{kind.ending}" for number in ("", *range(2, 1000)))
    with one_writer(job.parts, 2, waiting=_interrupted, tell=tell, kept=KEPT):
        video = GroupedVideo(job.parts, kind, rate, quality, f"{job.clip} {job.settings}")
        decoded = lambda first: decoded_groups(vae, samples, num_frames, plan, first)  # noqa: E731
        groups = len(vae.network.decode_slices(samples.shape[2]))
        path = _complete(video, groups, decoded, lambda: latent_file.folder / next(names), metadata)
    job.finish()
    _tell_unfinished(store)
    return OutputFile(latent_file.folder, path.name, latent_file.subfolder)


def _job(store: Path, vae: OpenSoraVAE, samples: Tensor, settings: Mapping[str, Any]) -> VideoJob:
    """The job of these latents; one whose decoder cannot be identified shares its parts with nobody."""
    for left in store.glob(f"*/{APART}*"):
        with suppress(OSError):
            remove_if_idle(left)
    libraries = {"av": av.__version__, "codec": av.library_versions.get("libavcodec")}
    found = model_identity({"vae": vae_parts(vae), **settings, **libraries}, _interrupted)
    job = VideoJob.of(store, samples, found.digest)
    if not found.unknown:
        return job
    tell(f"If this decode is cut off, it cannot be continued: {found.unknown[0]} has nothing by which two runs could "
         "be compared.")  # fmt: skip
    return replace(job, settings=f"{APART}{secrets.token_hex(8)}")


def _complete(
    video: GroupedVideo,
    groups: int,
    decoded: Callable[[int], Generator[Tensor, None, None]],
    choose: Callable[[], Path],
    metadata: Mapping[str, Any] | None,
) -> Path:
    """Make the groups that are missing and join all. Where there are no locks, another process may remove some."""
    for _ in range(ATTEMPTS):
        missing = video.missing(groups)
        if 0 < len(missing) < groups:
            tell(f"Continuing an unfinished video: {groups - len(missing)} of {groups} groups are there.")
        while missing:
            with closing(decoded(missing[0])) as stream:
                for number, images in enumerate(stream, missing[0]):
                    video.write(number, images[0])
                    missing.remove(number)
                    if number + 1 not in missing:
                        break
        try:
            return video.join_new(groups, choose, metadata)
        except PartsMissing:
            continue
    raise ValueError(
        f"Another program removes the parts of this video from '{video.folder}' while it is made; stop it and run "
        "again."
    )


def _tell_unfinished(store: Path) -> None:
    count, size = unfinished_videos(store)
    if count:
        logger.info("Unfinished videos of other latents: %d, %.0f MB in '%s'. Decoding those latents again finishes "
                    "them; deleting the folder gives the space back.", count, size / 1e6, store)  # fmt: skip


def _interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
