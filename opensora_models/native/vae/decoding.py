"""Decoding and encoding for the nodes: progress, interruption, memory, files. Piece by piece throughout."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...releases.known import believed_release
from ...storage.beside import beside
from ...storage.locks import one_writer, remove_if_idle
from ...vae.distribution import mode, seeded
from ...vae.guards import check_latents, check_numbers, check_pictures, check_pixels, otherwise_said
from ...vae.latent_file import ENDING, save_new_latent
from ...vae.strips import Strips
from ...vae.tile_rows import TileRows
from ...vae.tiling import RowStore
from ...vae.video_file import FORMATS, KEPT, GroupedVideo, PartsMissing, VideoJob, exact_rate, unfinished_videos
from ..graph_words import words_of
from ..identity import model_identity, vae_parts
from ..memory import check_frames_fit
from ..messages import tell
from ..outputs import OutputFile, next_output
from ..sampling.clips import RELEASE_KEY
from .first_stage import interrupted, tell_length_decoded, tell_length_encoded
from .helped import helpers
from .plans import BEGUN, DECODE, ENCODE, UNFINISHED, chosen_plan, plan_begun_with, plan_while_working, prepared
from .vae import OpenSoraVAE

logger = logging.getLogger("opensora")

VAE_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
APART = "apart-"
ATTEMPTS = 3
CONVERTED = 16  # frames that are turned into images at once


def own_vae(vae: Any) -> OpenSoraVAE:
    """The VAE if it is one of ours, else ValueError."""
    if not isinstance(vae, OpenSoraVAE):
        raise ValueError(
            f"This node streams Open-Sora VAEs and was given a {type(vae).__name__}; use Open-Sora Load VAE, or "
            "ComfyUI's own VAE nodes for other models."
        )
    return vae


def _decoded_parts(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, plan: Strips | None, first_part: int = 0,
    end_part: int | None = None, store: RowStore | None = None,
) -> Generator[Tensor, None, None]:  # fmt: skip
    """Yield pixels [B, 3, t, H, W] in [-1, 1] on the VAE's device, part after part, with progress."""
    network = vae.network
    check_latents(samples, network.version, network.latent_channels)
    tell_length_decoded(network, samples.shape[2], num_frames)
    plan = prepared(vae, samples.shape, plan, decoding=True)
    latents = network.to_own(samples.to(vae.device, vae.vae_dtype))
    layout = network.decode_layout(samples.shape, num_frames)
    needed = layout.needed(first_part, end_part)
    again = sum(piece.part < first_part for piece in needed)  # pieces of the part before, whose end is blended
    progress = comfy.utils.ProgressBar(len(layout.pieces))

    def between(done: int, pieces: int) -> None:
        interrupted()
        if done > again:
            progress.update_absolute(needed[0].number + done)

    with helpers(vae, latents, num_frames, plan, first_part, end_part) as helped:
        rows = None if helped else store  # rows of tiles are whole on one device alone
        for pixels in network.decoded(
            latents,
            num_frames,
            plan,
            first_part=first_part,
            end_part=end_part,
            between=between,
            store=rows,
            helped=helped,
        ):
            check_pixels(pixels)
            yield pixels
            interrupted()


def _images(vae: OpenSoraVAE, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, t, H, W] in [-1, 1] to images [B, t, H, W, 3] in [0, 1] on the output device."""
    return vae.process_output(pixels.to(vae.output_device, torch.float32, copy=True)).movedim(1, -1)


def decoded_groups(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, plan: Strips | None, first_part: int = 0,
    end_part: int | None = None, store: RowStore | None = None,
) -> Generator[Tensor, None, None]:  # fmt: skip
    """Yield images [B, t, H, W, 3] in [0, 1] on the output device, part after part, with progress."""
    for pixels in _decoded_parts(vae, samples, num_frames, plan, first_part, end_part, store):
        yield _images(vae, pixels)


def decode_images(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, tile: str, metadata: Mapping[str, Any] | None = None
) -> Tensor:
    """Latents [B, C, T, h, w] to images [B·F, H, W, 3] in [0, 1]; memory for the result is taken once."""
    check_latents(samples, vae.network.version, vae.network.latent_channels)
    count, height, width = vae.network.decode_layout(samples.shape, num_frames).shape
    check_frames_fit((samples.shape[0], 3, count, height, width))
    images = torch.empty((samples.shape[0], count, height, width, 3), device=vae.output_device)
    tell_length_decoded(vae.network, samples.shape[2], num_frames)
    done = 0
    with plan_while_working(vae, samples, tile, DECODE, words_of(metadata)) as plan:
        for pixels in _decoded_parts(vae, samples, num_frames, plan):
            for some in pixels.split(CONVERTED, dim=2):
                images[:, done : done + some.shape[2]] = _images(vae, some)
                done += some.shape[2]
            del pixels
    return images.flatten(0, 1)


def encode_images(vae: OpenSoraVAE, images: Tensor, tile: str, seed: int | None) -> Tensor:
    """Images [F, H, W, 3] in [0, 1] to latents [1, C, T, h, w]; sides are cropped to whole latents at the centre."""
    network, least = vae.network, vae.network.space_factor
    if images.ndim != 4 or images.shape[0] < 1 or min(images.shape[1:3]) < least:
        raise ValueError(
            f"The VAE encodes images [frames, height, width, 3] of at least {least} x {least} pixels; "
            f"{list(images.shape)} was given."
        )
    check_pictures(images)
    pixels = vae.vae_encode_crop_pixels(images).movedim(-1, 0).unsqueeze(0)
    tell_length_encoded(network, pixels.shape[2])
    progress = comfy.utils.ProgressBar(len(network.encode_layout(pixels.shape).pieces))

    def between(done: int, pieces: int) -> None:
        progress.update_absolute(done)
        interrupted()

    def prepare(block: Tensor) -> Tensor:
        return vae.process_input(block).to(vae.device, vae.vae_dtype)

    draw = mode if seed is None else seeded(seed)
    with plan_while_working(vae, pixels, tile, ENCODE) as plan:
        latents = network.encode_own(pixels, plan, draw=draw, between=between, prepare=prepare)
    return network.from_own(latents.to(vae.output_device, torch.float32))


def latents_for(vae: OpenSoraVAE, latent: Mapping[str, Any]) -> Tensor:
    """The latents of a LATENT, and a sentence where it says that they are another release's than the VAE's."""
    samples = latent["samples"]
    if _fits(vae, samples):  # others are refused, and not decoded as anything
        tell(otherwise_said(latent.get(RELEASE_KEY), samples.shape[1], vae.network.version))
    return samples


def _fits(vae: OpenSoraVAE, samples: Tensor) -> bool:
    """Whether latents have the shape of the VAE's."""
    return samples.ndim == 5 and samples.shape[1] == vae.network.latent_channels


def latent_name(vae: OpenSoraVAE, latent: Mapping[str, Any], prefix: str, hidden: Any) -> OutputFile:
    """The next free name for latents; ``hidden`` are the node's hidden inputs, read by placeholders."""
    height, width = (vae.network.space_factor * size for size in latent["samples"].shape[-2:])
    return next_output(prefix, ENDING, hidden, (width, height))


def keep_latent(
    vae: OpenSoraVAE, latent: Mapping[str, Any], choose: Callable[[], OutputFile], notes: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> OutputFile:  # fmt: skip
    """Save latents before anything can fail, and say where; ``choose`` gives the next free name.

    Latents of another model than the VAE's are saved as well: sampling them was work. ValueError if they hold no
    numbers, which nothing can go on from.
    """
    samples = latent["samples"]
    check_numbers(samples)
    release = vae.network.release if _fits(vae, samples) else believed_release(latent=latent.get(RELEASE_KEY))
    version = {} if release is None else {"version": release.id}
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


def decode_to_videos(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, frame_rate: float, form: str, quality: int, tile: str,
    latent_file: OutputFile, metadata: Mapping[str, Any] | None,
) -> list[OutputFile]:  # fmt: skip
    """A video of every clip of latents [B, C, T, h, w], one after the other; as :func:`decode_to_video`."""
    if samples.shape[0] > 1:
        tell(f"The latents hold {samples.shape[0]} clips; each becomes a video file of its own.", level=logging.INFO)
    settings = num_frames, frame_rate, form, quality, tile
    return [decode_to_video(vae, clip, *settings, latent_file, metadata) for clip in samples.split(1)]


def decode_to_video(
    vae: OpenSoraVAE, samples: Tensor, num_frames: int | None, frame_rate: float, form: str, quality: int, tile: str,
    latent_file: OutputFile, metadata: Mapping[str, Any] | None,
) -> OutputFile:  # fmt: skip
    """Decode a clip [1, C, T, h, w] straight into a file beside its latents; goes on with a job that was cut off."""
    # What is refused here leaves no unfinished video behind.
    check_latents(samples, vae.network.version, vae.network.latent_channels)
    tell_length_decoded(vae.network, samples.shape[2], num_frames)
    kind, rate = FORMATS[form], exact_rate(frame_rate)
    store = Path(folder_paths.get_output_directory()) / UNFINISHED
    plan = chosen_plan(vae, tile)
    settings = {"frames": num_frames, "rate": rate, "format": kind, "quality": quality, "plan": plan}
    job = _job(store, vae, samples, settings)
    names = (f"{latent_file.path.stem}{number}{kind.ending}" for number in ("", *range(2, 1000)))
    with one_writer(job.parts, 2, waiting=interrupted, tell=tell, kept=KEPT):
        video = GroupedVideo(job.parts, kind, rate, quality, f"{job.clip} {job.settings}", words_of(metadata))
        rows = TileRows(video.pieces, partial(tell, "Continuing an unfinished video: some rows of tiles are there."))
        layout = vae.network.decode_layout(samples.shape, num_frames)

        def decoded(run: range) -> Generator[Tensor, None, None]:
            settled = plan or plan_begun_with(video.pieces, "video", vae, samples.shape)
            return decoded_groups(vae, samples, num_frames, settled, run.start, run.stop, rows)

        def write(number: int, images: Tensor) -> None:
            video.write(number, images[0])
            rows.forget(number, len(layout.rows.takes))  # not before the part is there

        path = _complete(video, layout.parts, decoded, write, lambda: latent_file.folder / next(names), metadata)
    job.finish()
    _tell_unfinished(store)
    return OutputFile(latent_file.folder, path.name, latent_file.subfolder)


def _job(store: Path, vae: OpenSoraVAE, samples: Tensor, settings: Mapping[str, Any]) -> VideoJob:
    """The job of these latents; one whose decoder cannot be identified shares its parts with nobody."""
    for left in store.glob(f"*/{APART}*"):
        with suppress(OSError):
            remove_if_idle(left)
    libraries = {"av": av.__version__, "codec": av.library_versions.get("libavcodec")}
    found = model_identity({"vae": vae_parts(vae), **settings, **libraries}, interrupted)
    job = VideoJob.of(store, samples, found.digest)
    if not found.unknown:
        return job
    tell(f"If this decode is cut off, it cannot be continued: {found.unknown[0]} has nothing by which two runs could "
         "be compared.")  # fmt: skip
    return replace(job, settings=f"{APART}{secrets.token_hex(8)}")


def _complete(
    video: GroupedVideo,
    groups: int,
    decoded: Callable[[range], Generator[Tensor, None, None]],
    write: Callable[[int, Tensor], None],
    choose: Callable[[], Path],
    metadata: Mapping[str, Any] | None,
) -> Path:
    """Make the groups that are missing, each written while the next is decoded, and join all.

    A decode goes up to the next group that is there and ends by itself: broken off, workers that share it would take
    that for an interrupt and have to meet anew. Where there are no locks, another process may remove some.
    """
    for _ in range(ATTEMPTS):
        missing = video.missing(groups)
        if 0 < len(missing) < groups:
            tell(f"Continuing an unfinished video: {groups - len(missing)} of {groups} groups are there.")
        for run in _runs(missing):
            with closing(decoded(run)) as stream, beside() as writer:
                for number, images in enumerate(stream, run.start):
                    writer.start(partial(write, number, images))
        try:
            return video.join_new(groups, choose, metadata)
        except PartsMissing:
            continue
    raise ValueError(
        f"Another program removes the parts of this video from '{video.folder}' while it is made; stop it and run "
        "again."
    )


def _runs(numbers: list[int]) -> list[range]:
    """Rising numbers as the ranges they form."""
    known = set(numbers)
    starts = [number for number in numbers if number - 1 not in known]
    ends = [number + 1 for number in numbers if number + 1 not in known]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _tell_unfinished(store: Path) -> None:
    count, size = unfinished_videos(store, BEGUN)
    if count:
        logger.info("Unfinished videos of other latents: %d, %.0f MB in '%s'. Decoding those latents again finishes "
                    "them; deleting the folder gives the space back.", count, size / 1e6, store)  # fmt: skip
