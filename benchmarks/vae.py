"""Time and peak memory of the video autoencoders against the plain whole-clip path, in one run.

Plain: every layer in one piece, all frames of v1.2's image stage at once, up-sampling as nearest neighbour and a full
convolution. Without arguments: on a GPU the released sizes in bfloat16 from 17x256x256 to 102x720x1280; elsewhere a
network a quarter as wide at small sizes, one thread.

    python benchmarks/vae.py --version 1.3 --size 17x96x160 --direction decode --strip-mib 4

``time`` and ``memory`` are ratios to the plain path (above 1: faster; below 1: leaner); ``estimate`` is what ComfyUI
is told divided by what was measured. ``video`` decodes groups into files and compares the peaks of 51 and 408 frames.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import Measured, measure
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13  # noqa: E402
from opensora.opensora_models.vae.budget import STANDARD_STRIP, Job, decode_bytes, encode_bytes  # noqa: E402
from opensora.opensora_models.vae.causal import CausalConfig  # noqa: E402
from opensora.opensora_models.vae.image import ImageConfig  # noqa: E402
from opensora.opensora_models.vae.layers import Upsample2d  # noqa: E402
from opensora.opensora_models.vae.strips import Strips  # noqa: E402
from opensora.opensora_models.vae.temporal import TemporalConfig  # noqa: E402
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate  # noqa: E402

GPU_SIZES = ((17, 256, 256), (51, 480, 848), (51, 720, 1280), (102, 720, 1280))
CPU_SIZES = ((17, 96, 160), (34, 96, 160))
SHORT, LONG = 51, 408  # frames of the two videos whose peaks must agree
MIB = 2**20
Model = OpenSora12 | OpenSora13


def build(version: str, full: bool, device: torch.device, dtype: torch.dtype) -> Model:
    """A network with seeded weights: the released widths, or a quarter of them."""
    torch.manual_seed(0)
    width = 128 if full else 32
    if version == "1.3":
        model: Model = OpenSora13(CausalConfig(width=width))
    else:
        widths = (width, 2 * width, 4 * width, 4 * width)
        model = OpenSora12(ImageConfig(widths=widths), TemporalConfig(filters=width))
    return model.to(device, dtype).eval()


class _NearestThenConvolution(nn.Module):
    """The plain form of a doubling convolution, with the same weights."""

    def __init__(self, doubling: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = doubling.weight, doubling.bias

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.repeat_interleave(2, dim=axis)
        if x.ndim == 4:
            return nn.functional.conv2d(x, self.weight, self.bias, padding=1)
        return nn.functional.conv3d(nn.functional.pad(x, (1, 1, 1, 1, 2, 0)), self.weight, self.bias)


def unfold(model: Model) -> Model:
    """Replace every doubling convolution by its plain form."""
    for module in model.modules():
        if isinstance(module, Upsample2d):
            module.conv = _NearestThenConvolution(module.conv)
        elif hasattr(module, "conv3d"):
            module.conv3d.conv1.conv = _NearestThenConvolution(module.conv3d.conv1.conv)
    return model


def plain_decode(model: Model, latents: Tensor) -> Tensor:
    """All frames of the image stage at once (v1.2); group after group where it cannot be otherwise."""
    if isinstance(model, OpenSora13):
        return model.decode(latents)
    total = model.frames_of(latents.shape[2])
    images = [
        model.temporal_vae.decode(latents[:, :, part], min(17, total - 17 * index))
        for index, part in enumerate(model.decode_slices(latents.shape[2]))
    ]
    return model.spatial_vae.decode(torch.cat(images, dim=2), None)


def plain_encode(model: Model, video: Tensor) -> Tensor:
    """The same for encoding, in mode."""
    if isinstance(model, OpenSora13):
        return model.encode(video)
    images = model.spatial_vae.encode(video, None, lambda posterior: posterior.mean)
    parts = [model.temporal_vae.moments(images[:, :, part]) for part in model.encode_slices(video.shape[2])]
    return torch.cat([moments.chunk(2, dim=1)[0] for moments in parts], dim=2)


def plans(strip_bytes: int) -> dict[str, Strips]:
    """What is compared with the plain path."""
    return {
        "strips": Strips(strip_bytes, images=4),
        "one image": Strips(strip_bytes, images=1),
        "lean": Strips(strip_bytes, True, 1),
    }


def compare(
    version: str, size: tuple[int, int, int], direction: str, device: torch.device, dtype: torch.dtype,
    full: bool, strip_bytes: int | None, repeats: int,
) -> None:  # fmt: skip
    """Print one table: the plain path and every plan, for one clip size and direction."""
    model, reference = build(version, full, device, dtype), unfold(build(version, full, device, dtype))
    frames, height, width = size
    channels, cells = model.latent_channels, (height // 8, width // 8)
    latents = sum(-(-(part.stop - part.start) // 4) for part in model.encode_slices(frames))
    shape = (1, channels, latents, *cells) if direction == "decode" else (1, 3, frames, height, width)
    given = torch.randn(shape, device=device, dtype=dtype)
    job = (Job.decoding if direction == "decode" else Job.encoding)(shape, given.element_size())
    estimate = decode_bytes if direction == "decode" else encode_bytes
    base = 128 if full else 32
    chosen = plans(strip_bytes or (STANDARD_STRIP if full else job.layer(base) // 16))
    decoding = direction == "decode"
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: (plain_decode if decoding else plain_encode)(reference, given)
    }
    for name, plan in chosen.items():
        if decoding:
            ways[name] = lambda plan=plan: model.decode(given, None, plan)
        else:
            ways[name] = lambda plan=plan: model.encode(given, plan)
    found = measure(ways, device, repeats)
    print(f"\nv{version} {direction} {frames}x{height}x{width} {dtype} on {device.type}")
    _row("plain", found["plain"], found["plain"], None)
    for name, plan in chosen.items():
        _row(name, found[name], found["plain"], estimate(model, job, plan))


def _row(name: str, result: Measured, plain: Measured, estimate: float | None) -> None:
    peak = "      ?" if result.peak_bytes is None else f"{result.peak_bytes / MIB:7.0f}"
    memory = (
        "    ?" if not result.peak_bytes or not plain.peak_bytes else f"{result.peak_bytes / plain.peak_bytes:5.2f}"
    )
    told = f"{estimate / result.peak_bytes:5.2f}" if estimate and result.peak_bytes else "    -"
    print(
        f"  {name:<10} {result.seconds:8.2f} s  time {plain.seconds / result.seconds:5.2f}  {peak} MiB  memory {memory}"
        f"  estimate {told}"
    )


def constant_peak(version: str, device: torch.device, dtype: torch.dtype, full: bool) -> None:
    """Decode a short and a long clip into files and print both peaks."""
    model = build(version, full, device, dtype)
    height, width = (480, 848) if full else (64, 96)
    peaks = []
    for frames in (SHORT, LONG):
        latents = sum(-(-(part.stop - part.start) // 4) for part in model.encode_slices(frames))
        given = torch.randn(1, model.latent_channels, latents, height // 8, width // 8, device=device, dtype=dtype)
        peaks.append(measure({"video": lambda given=given: _to_file(model, given)}, device, 1)["video"].peak_bytes or 0)
    print(f"\nv{version} video: peak {peaks[0] / MIB:.1f} MiB at {SHORT} frames, {peaks[1] / MIB:.1f} MiB at {LONG}, "
          f"ratio {peaks[1] / max(1, peaks[0]):.2f}")  # fmt: skip


def _to_file(model: Model, latents: Tensor) -> None:
    kind = FORMATS["mp4 (h264)"]
    with tempfile.TemporaryDirectory() as folder:
        video = GroupedVideo(Path(folder) / "parts", kind, exact_rate(24), 18)
        number = -1
        for number, pixels in enumerate(model.decoded(latents, None, Strips(STANDARD_STRIP, images=1))):
            video.write(number, ((pixels[0].float() + 1) / 2).movedim(0, -1))
        video.join(number + 1, Path(folder) / "out.mp4", None)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--version", choices=["1.2", "1.3"], nargs="*", default=["1.2", "1.3"])
    parser.add_argument("--size", nargs="*", help="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--direction", choices=["decode", "encode", "video"], nargs="*")
    parser.add_argument("--full", action=argparse.BooleanOptionalAction, default=gpu, help="the released widths")
    parser.add_argument("--strip-mib", type=float)
    parser.add_argument("--repeats", type=int, default=3 if gpu else 1)
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(1)
    sizes = [tuple(map(int, size.split("x"))) for size in options.size or ()] or (
        GPU_SIZES if options.full else CPU_SIZES
    )
    strip_bytes = int(options.strip_mib * MIB) if options.strip_mib else None
    with torch.inference_mode():
        for version in options.version:
            for direction in options.direction or ("decode", "encode", "video"):
                if direction == "video":
                    constant_peak(version, device, dtype, options.full)
                    continue
                for size in sizes:
                    compare(version, size, direction, device, dtype, options.full, strip_bytes, options.repeats)


if __name__ == "__main__":
    main()
