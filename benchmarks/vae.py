"""Time and peak memory of the video autoencoders against the plain whole-clip path, in one run.

Plain: every layer in one piece, all frames of v1.2's image stage at once, up-sampling as nearest neighbour and a full
convolution. Without arguments: on a GPU the released width in bfloat16 from 17x256x256 to 102x720x1280; elsewhere a
quarter of the width at small sizes, one thread. Narrower networks get strips of as many rows as the released one.

    python benchmarks/vae.py --version 1.3 --size 17x480x848 --direction decode --width 16

2.0's autoencoders work in their released tiles in every way, and take the nearest length they can; single tiles are
measured by ``vae_tiles.py``.

Ratios are to the plain path, where it can run: ``time`` above 1 is faster; ``resident`` (growth of the process) and
``tensors`` (counted by the allocator; on a GPU both are this) below 1 are leaner. ``estimate`` is what ComfyUI is told
divided by what tensors took. ``auto`` is the plan the nodes take while memory is free. ``video`` decodes groups into
files, of the first size given, and compares the peaks of 51 and 408 frames.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vae_tiles
from _measure import Measured, device_here, measure
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13  # noqa: E402
from opensora.opensora_models.vae.blocks import Upsample3d  # noqa: E402
from opensora.opensora_models.vae.budget import candidate_plans  # noqa: E402
from opensora.opensora_models.vae.causal import CausalConfig  # noqa: E402
from opensora.opensora_models.vae.image import ImageConfig  # noqa: E402
from opensora.opensora_models.vae.layers import Upsample2d  # noqa: E402
from opensora.opensora_models.vae.needs import decode_bytes, encode_bytes  # noqa: E402
from opensora.opensora_models.vae.strips import Strips  # noqa: E402
from opensora.opensora_models.vae.temporal import TemporalConfig  # noqa: E402
from opensora.opensora_models.vae.tiled import (  # noqa: E402
    DC_AE_TILING,
    HUNYUAN_TILING,
    OpenSora20,
    TiledAutoencoder,
)
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate  # noqa: E402

GPU_SIZES = ((17, 256, 256), (51, 480, 848), (51, 720, 1280), (102, 720, 1280))
CPU_SIZES = ((17, 96, 160), (34, 96, 160))
RELEASED_WIDTH = 128  # channels of the layers at full size
VIDEO_SIZE, SMALL_VIDEO_SIZE = (480, 848), (64, 96)
SHORT, LONG = 51, 408  # frames of the two videos whose peaks must agree
MIB = 2**20
DTYPES = ("float32", "bfloat16", "float16")
VERSIONS = ("1.2", "1.3", "2.0", "2.0-hc")
TILED = {"2.0": ("hunyuan", HUNYUAN_TILING), "2.0-hc": ("dc-ae", DC_AE_TILING)}
Model = OpenSora12 | OpenSora13 | TiledAutoencoder


def build(version: str, width: int, device: torch.device, dtype: torch.dtype) -> Model:
    """A network with seeded weights and the released proportions."""
    torch.manual_seed(0)
    groups = min(32, width)
    if version in TILED:
        name, tiling = TILED[version]
        tiled = vae_tiles.build(name, width, device, dtype)
        tiled.tiling = tiling
        return tiled
    if version == "1.3":
        model: Model = OpenSora13(CausalConfig(width=width, groups=groups))
    else:
        widths = (width, 2 * width, 4 * width, 4 * width)
        model = OpenSora12(ImageConfig(widths=widths, groups=groups), TemporalConfig(filters=width, groups=groups))
    return model.to(device, dtype).eval()


def unfold(model: Model) -> Model:
    """Replace every doubling convolution by its plain form, with the same weights."""
    if isinstance(model, TiledAutoencoder):
        return vae_tiles.unfold(model)
    for module in model.modules():
        if isinstance(module, Upsample2d):
            module.doubled = partial(_nearest_then_convolution, module.conv)
        elif isinstance(module, Upsample3d):
            module.doubled = partial(_nearest_then_convolution, module.conv3d.conv1.conv)
    return model


def _nearest_then_convolution(layer: nn.Module, x: Tensor, *_: int) -> Tensor:
    if layer.weight.ndim < x.ndim:
        frames = _nearest_then_convolution(layer, x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(2, dim=axis)
    if x.ndim == 4:
        return nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    return nn.functional.conv3d(nn.functional.pad(x, (1, 1, 1, 1, 2, 0)), layer.weight, layer.bias)


def plain_decode(model: Model, latents: Tensor, out: Tensor) -> Tensor:
    """All frames of the image stage at once (v1.2); group after group into ``out`` where it cannot be otherwise."""
    if not isinstance(model, OpenSora12):
        return model.decode(latents, out=out)
    total = model.frames_of(latents.shape[2])
    images = [
        model.temporal_vae.decode(latents[:, :, part], min(17, total - 17 * index))
        for index, part in enumerate(model.decode_slices(latents.shape[2]))
    ]
    return model.spatial_vae.decode(torch.cat(images, dim=2), None)


def plain_encode(model: Model, video: Tensor) -> Tensor:
    """The same for encoding, in mode."""
    if not isinstance(model, OpenSora12):
        return model.encode(video)
    images = model.spatial_vae.encode(video, None, lambda posterior: posterior.mean)
    parts = [model.temporal_vae.moments(images[:, :, part]) for part in model.encode_slices(video.shape[2])]
    return torch.cat([moments.chunk(2, dim=1)[0] for moments in parts], dim=2)


def plans(width: int, strip_mib: float | None) -> dict[str, Strips]:
    """What is compared with the plain path: the first three of the nodes' own plans, strips scaled to the width."""
    auto, one_image, lean, *_ = (
        replace(plan, strip_bytes=int(strip_mib * MIB) if strip_mib else plan.strip_bytes * width // RELEASED_WIDTH)
        for plan in candidate_plans()
        if plan.strip_bytes is not None
    )
    return {"auto": auto, "one image": one_image, "lean": lean}


def compare(
    version: str, size: tuple[int, int, int], direction: str, device: torch.device, dtype: torch.dtype,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Print one table: the plain path and every plan, for one clip size and direction."""
    width = options.width
    model, reference = build(version, width, device, dtype), unfold(build(version, width, device, dtype))
    frames, height, image_width = size
    if isinstance(model, TiledAutoencoder):
        frames = model.release.latents.lengths.nearest(frames)
    cells = (height // model.space_factor, image_width // model.space_factor)
    decoding = direction == "decode"
    shape = (
        (1, model.latent_channels, model.latents_of(frames), *cells)
        if decoding
        else (1, 3, frames, height, image_width)
    )
    given = torch.randn(shape, device=device, dtype=dtype)
    beside = 0 if decoding else pixels_of_a_piece(model, shape) * given.element_size()
    # Core makes the tensor of the decoded clip beforehand, in memory that is not the GPU's.
    out = torch.empty((1, 3, model.frames_of(shape[2]), *size[1:]), device=device, dtype=dtype) if decoding else None
    chosen = {name: plan for name, plan in plans(width, options.strip_mib).items() if name in options.plan}
    ways: dict[str, Callable[[], object]] = {}
    for name, plan in chosen.items():
        if decoding:
            ways[name] = lambda plan=plan: model.decode(given, None, plan, out=out)
        else:
            ways[name] = lambda plan=plan: model.encode(given, plan)
    plain = partial(plain_decode, reference, given, out) if decoding else partial(plain_encode, reference, given)
    print(
        f"\nv{version} {direction} {frames}x{height}x{image_width} {dtype} width {width} on {device.type}", flush=True
    )
    reason = why_not(plain, device)
    if reason is None:
        ways = {"plain": plain, **ways}
    else:
        print(f"  plain      cannot run here: {reason}")
    found = measure(ways, device, options.repeats)
    for name, result in found.items():
        told = None
        if name in chosen:
            told = (decode_bytes if decoding else encode_bytes)(model, shape, given.element_size(), chosen[name])
            told -= beside
        _row(name, result, found.get("plain"), told)


def pixels_of_a_piece(model: Model, shape: tuple[int, ...]) -> int:
    """Values of the largest piece of a video, which are told with encoding and are there before the call."""
    layout = model.encode_layout(shape)
    sizes = [max(part.stop - part.start for part in axis.takes) for axis in (layout.time, layout.rows, layout.columns)]
    return 3 * sizes[0] * sizes[1] * sizes[2]


def why_not(way: Callable[[], object], device: torch.device) -> str | None:
    """Why a call cannot run on the GPU: too little memory, or a tensor too large for its kernels."""
    if device.type == "cpu":
        return None
    try:
        way()
    except RuntimeError as error:
        torch.cuda.empty_cache()
        return str(error).split(". ")[0]
    return None


def _row(name: str, result: Measured, plain: Measured | None, told: float | None) -> None:
    def ratio(title: str, value: float | None, base: float | None) -> str:
        return f"  {title} {value / base:5.2f}" if value and base else f"  {title}     -"

    resident = "      ?" if result.peak_bytes is None else f"{result.peak_bytes / MIB:7.0f}"
    line = f"  {name:<10} {result.seconds:8.2f} s {resident} MiB  tensors {result.counted_bytes / MIB:7.0f} MiB"
    line += ratio("time", plain and plain.seconds, result.seconds)
    line += ratio("resident", result.peak_bytes, plain and plain.peak_bytes)
    line += ratio("tensors", result.counted_bytes, plain and plain.counted_bytes)
    print(line + ratio("estimate", told, result.counted_bytes), flush=True)


def constant_peak(
    version: str, size: tuple[int, int] | None, device: torch.device, dtype: torch.dtype, options: argparse.Namespace
) -> None:
    """Decode a short and a long clip into files and print both peaks."""
    model = build(version, options.width, device, dtype)
    if isinstance(model, OpenSora20):  # its released tiles hold all frames
        model.tiling = replace(model.tiling, temporal=True)
    height, width = size or (VIDEO_SIZE if device.type == "cuda" else SMALL_VIDEO_SIZE)
    plan = plans(options.width, options.strip_mib)["auto"]
    ways = {}
    for frames in (SHORT, LONG):
        shape = (1, model.latent_channels, model.latents_of(model.release.latents.lengths.nearest(frames)),
                 height // model.space_factor, width // model.space_factor)  # fmt: skip
        ways[str(frames)] = partial(_to_file, model, torch.randn(shape, device=device, dtype=dtype), plan)
    found = measure(ways, device, max(2, options.repeats))  # the first run also grows by the libraries' workspaces
    print(
        f"\nv{version} video {height}x{width} {dtype} width {options.width} on {device.type}, frames {SHORT} and {LONG}"
    )
    for title, (short, long) in {
        "resident": [result.peak_bytes or 0 for result in found.values()],
        "tensors": [result.counted_bytes for result in found.values()],
    }.items():
        print(f"  {title:<9}{short / MIB:8.1f} MiB {long / MIB:8.1f} MiB  ratio {long / max(1, short):.2f}", flush=True)


def _to_file(model: Model, latents: Tensor, plan: Strips) -> None:
    kind = FORMATS["mp4 (h264)"]
    with tempfile.TemporaryDirectory() as folder:
        video = GroupedVideo(Path(folder) / "parts", kind, exact_rate(24), 18)
        number = -1
        for number, pixels in enumerate(model.decoded(latents, None, plan)):
            video.write(number, ((pixels[0].float() + 1) / 2).movedim(0, -1))
        video.join(number + 1, Path(folder) / "out.mp4", None)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", type=device_here, default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if gpu else "float32")
    parser.add_argument("--version", choices=VERSIONS, nargs="+", default=list(VERSIONS))
    parser.add_argument("--size", type=option.size, nargs="+", help="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--direction", choices=["decode", "encode", "video"], nargs="+")
    parser.add_argument("--width", type=option.count, default=RELEASED_WIDTH if gpu else 32, help="128: released")
    parser.add_argument("--plan", choices=list(plans(1, None)), nargs="+", default=list(plans(1, None)))
    parser.add_argument("--strip-mib", type=option.above_zero, help="size of a strip, instead of the plan's")
    parser.add_argument("--repeats", type=option.count, default=3 if gpu else 1)
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(1)
    given = options.size or []
    sizes = given or (CPU_SIZES if device.type == "cpu" else GPU_SIZES)
    with torch.inference_mode():
        for version in options.version:
            for direction in options.direction or ("decode", "encode", "video"):
                if direction == "video":
                    constant_peak(version, given[0][1:] if given else None, device, dtype, options)
                    continue
                for size in sizes:
                    compare(version, size, direction, device, dtype, options)


if __name__ == "__main__":
    main()
