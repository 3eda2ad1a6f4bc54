"""Time and memory of one tile of Open-Sora 2.0's autoencoders, by strips, against the plain whole-tile path.

Plain: every layer in one piece, up-sampling as nearest neighbour and a full convolution, as the original has it.
Without arguments: on a GPU the released width, tile and type; elsewhere an eighth of the width and a small tile, one
thread. Narrower networks get strips of as many rows as the released one.

    python benchmarks/vae_tiles.py --autoencoder hunyuan --direction decode --width 32 --tile 33x192x192

``time`` above 1 is faster than plain, ``tensors`` below 1 is leaner; ``told`` is the estimate divided by what tensors
took. ``folded`` is the plain path with doubling folded into the convolution, which every plan has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measure import Measured, device_here, measure
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.vae.dcae import DcAeConfig, Enlargement  # noqa: E402
from opensora.opensora_models.vae.doubling import nearest  # noqa: E402
from opensora.opensora_models.vae.edges import BorderUpsample, border_around  # noqa: E402
from opensora.opensora_models.vae.hunyuan import HunyuanConfig  # noqa: E402
from opensora.opensora_models.vae.strips import Strips  # noqa: E402
from opensora.opensora_models.vae.tiled import (  # noqa: E402
    OpenSora20,
    OpenSora20HighCompression,
    TiledAutoencoder,
    Tiling,
)
from opensora.opensora_models.vae.tiled_budget import decode_bytes, encode_bytes  # noqa: E402

RELEASED_WIDTH = 128  # channels of the layers at full size
RELEASED_TILES = {"hunyuan": (129, 256, 256), "dc-ae": (32, 256, 256)}
SMALL_TILES = {"hunyuan": (33, 128, 128), "dc-ae": (16, 128, 128)}
# Strips of the standard plan, of 64 MiB, in a full-size layer of the released tile in bfloat16.
STRIPS_OF_A_LAYER = {"hunyuan": 32, "dc-ae": 8}
MIB = 2**20
DTYPES = ("float32", "bfloat16", "float16")


def build(name: str, width: int, device: torch.device, dtype: torch.dtype) -> TiledAutoencoder:
    """A network in one piece, with seeded weights and the released proportions."""
    torch.manual_seed(0)
    whole = Tiling(spatial=False, temporal=False)
    model: TiledAutoencoder
    if name == "hunyuan":
        config = HunyuanConfig((width, 2 * width, 4 * width, 4 * width), groups=min(32, width))
        model = OpenSora20(config, tiling=whole)
    else:
        widths = (width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width)
        model = OpenSora20HighCompression(DcAeConfig(widths, latent_channels=width), tiling=whole)
    return model.to(device, dtype).eval()


def unfold(model: TiledAutoencoder) -> TiledAutoencoder:
    """Replace every doubling convolution by its plain form, with the same weights."""
    for module in model.modules():
        if isinstance(module, BorderUpsample):
            module.doubled = partial(_causal, module)
        elif isinstance(module, Enlargement):
            module.doubled = partial(_centred, module)
    return model


def _causal(layer: BorderUpsample, x: Tensor, above: int, below: int) -> Tensor:
    return _plain(layer.conv.conv, border_around(nearest(x, layer.axes), 2, above, below, 1))


def _centred(layer: Enlargement, x: Tensor, *_: int) -> Tensor:
    return _plain(layer.main.conv.conv, F.pad(nearest(x, layer.axes), (1, 1, 1, 1, 1, 1)))


def _plain(conv: Any, x: Tensor) -> Tensor:
    """What the class below a doubling convolution's computes with its weights."""
    return super(type(conv), conv)._conv_forward(x, conv.weight, conv.bias)


def compare(
    name: str, direction: str, tile: tuple[int, int, int], device: torch.device, dtype: torch.dtype, width: int,
    repeats: int,
) -> None:  # fmt: skip
    """Print one table for a tile of so many frames, rows and columns of pixels."""
    model, plain = build(name, width, device, dtype), unfold(build(name, width, device, dtype))
    frames, height, columns = tile
    decoding = direction == "decode"
    factor = model.space_factor
    shape = (model.latents_of(frames), height // factor, columns // factor) if decoding else tile
    channels = model.latent_channels if decoding else 3
    given = torch.randn((1, channels, *shape), device=device, dtype=dtype)
    layer = width * frames * height * columns * given.element_size()
    strip = layer // STRIPS_OF_A_LAYER[name]
    plans = {"whole": Strips(None), "strips": Strips(strip), "lean": Strips(strip, lean=True)}

    def work(network: TiledAutoencoder, plan: Strips | None) -> Callable[[], Tensor]:
        return partial(network.decode_piece if decoding else network.encode_piece, given, plan)

    ways = {"plain": work(plain, None), "folded": work(model, None)}
    ways |= {title: work(model, plan) for title, plan in plans.items()}
    if not decoding:
        del ways["folded"]  # nothing is doubled
    print(f"\n{name} {direction} {frames}x{height}x{columns} {dtype} width {width} on {device.type}", flush=True)
    found = measure(ways, device, repeats)
    beside = 0 if decoding else given.nbytes  # the estimate includes the pixels, which are there before the call
    estimate = decode_bytes if decoding else encode_bytes
    for title, result in found.items():
        told = estimate(model, shape, given.element_size(), plans.get(title)) - beside
        _row(title, result, found["plain"], told if title != "plain" else None)


def _row(title: str, result: Measured, plain: Measured, told: float | None) -> None:
    line = f"  {title:<8} {result.seconds:8.2f} s  tensors {result.counted_bytes / MIB:7.0f} MiB"
    line += f"  time {plain.seconds / result.seconds:5.2f}  tensors {result.counted_bytes / plain.counted_bytes:5.2f}"
    print(line + (f"  told {told / result.counted_bytes:5.2f}" if told is not None else ""), flush=True)


def main() -> None:
    """Run what the command line asks for."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=device_here, default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if gpu else "float32")
    parser.add_argument("--autoencoder", choices=list(RELEASED_TILES), nargs="+", default=list(RELEASED_TILES))
    parser.add_argument("--direction", choices=["decode", "encode"], nargs="+", default=["decode", "encode"])
    parser.add_argument("--tile", type=option.size, help="FRAMESxHEIGHTxWIDTH in pixels")
    parser.add_argument("--width", type=option.count, default=RELEASED_WIDTH if gpu else 16, help="128: released")
    parser.add_argument("--repeats", type=option.count, default=3 if gpu else 1)
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with torch.inference_mode():
        for name in options.autoencoder:
            tile = options.tile or (RELEASED_TILES if gpu else SMALL_TILES)[name]
            for direction in options.direction:
                compare(name, direction, tile, device, dtype, options.width, options.repeats)


if __name__ == "__main__":
    main()
