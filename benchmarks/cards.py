"""What of Open-Sora 2.0 fits on which card, counted: nothing is computed and no card is needed.

    python benchmarks/cards.py                 a table in Markdown
    python benchmarks/cards.py --frames 65     for a shorter clip

Counted are the bytes of all weights, the most that lives at once during one row through the network (every allocation
followed, attention as its result, as flash kernels do it), and what the leanest decoding of one released tile of the
VAE takes. The text encoder is gone by then: ComfyUI takes it off the card before sampling. Guided steps compute up to
three rows; ComfyUI computes them one by one where they do not fit together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.mmdit.config import RELEASED as VIDEO  # noqa: E402
from opensora.opensora_models.mmdit.config import RELEASED_HIGH_COMPRESSION as HIGH_COMPRESSION  # noqa: E402
from opensora.opensora_models.mmdit.config import MMDiTConfig  # noqa: E402
from opensora.opensora_models.mmdit.network import MMDiT  # noqa: E402
from opensora.opensora_models.releases.known import RELEASES  # noqa: E402
from opensora.opensora_models.vae.budget import candidate_plans  # noqa: E402
from opensora.opensora_models.vae.tiled import OpenSora20, OpenSora20HighCompression  # noqa: E402
from opensora.opensora_models.vae.tiled_budget import decode_bytes  # noqa: E402
from support.allocations import Allocations, flash  # noqa: E402

GB, GIB = 10**9, 2**30
CARDS = (12, 16, 24, 48, 80)
"""Nominal sizes, which are GiB."""
RESERVED = 1.0 * GIB
"""For the driver, the picture on the screen and what PyTorch keeps in hand: an allowance, not counted."""
STORED = {"bf16": 2, "fp8": 1}
"""Bytes of a weight; biases and norms, which stay bf16, are below 0.1 % of the network."""
SIZES = {"256px": (192, 336), "768px": (576, 1024)}  # height and width at 16:9
NETWORKS = {"2.0": (VIDEO, OpenSora20), "2.0 high compression": (HIGH_COMPRESSION, OpenSora20HighCompression)}
DTYPE = torch.bfloat16


def parameters(network: nn.Module) -> int:
    """How many numbers a network is made of."""
    return sum(parameter.numel() for parameter in network.parameters())


def row_bytes(config: MMDiTConfig, cells: tuple[int, ...], text_tokens: int) -> int:
    """The most that lives at once during one row; depth does not matter, nothing is kept between blocks."""
    made = {"dtype": DTYPE, "device": "meta"}
    network = MMDiT(replace(config, depth=1, depth_single_blocks=2), attention=flash, **made)
    x, text = (
        torch.empty(1, config.channels, *cells, **made),
        torch.empty(1, text_tokens, config.context_in_dim, **made),
    )
    reference = torch.empty(1, 1 + config.channels, *cells, **made)
    inputs = (torch.empty(1, device="meta"), text, torch.empty(1, config.vec_in_dim, **made))
    with torch.no_grad(), Allocations([*network.parameters(), x, reference, *inputs]) as allocations:
        network(x, *inputs, reference=reference)
    return allocations.peak


def tile_bytes(kind: type, shape: tuple[int, ...]) -> float:
    """Weights of the VAE, and the leanest decoding of one released tile."""
    with torch.device("meta"):
        network = kind()
    plan = candidate_plans()[-1]
    return parameters(network) * DTYPE.itemsize + decode_bytes(network, shape, DTYPE.itemsize, plan)


def verdict(weights: float, row: float, card: int) -> str:
    """Whether a network stays on the card, or how much of it passes through in every row."""
    room = card * GIB - RESERVED - row
    if weights <= room:
        return f"resident, {(weights + row) / GB:.1f} GB"
    return f"streams {(weights - room) / GB:.1f} of {weights / GB:.1f} GB a row" if room > 0 else "does not fit"


def lines(frames: int) -> Iterator[str]:
    """The table."""
    ways = " | ".join(f"{stored}{way}" for stored in STORED for way in ("", ", modulations once per run"))
    yield f"| release and size | card | {ways} | VAE tile | |"
    yield "| --- " * (5 + len(STORED) * 2 - 1) + "|"
    for name, (config, vae) in NETWORKS.items():
        release = RELEASES[name]
        with torch.device("meta"):
            network = MMDiT(config)
        whole = parameters(network)
        once = whole - sum(map(parameters, network.modulation_layers()))
        for size in SIZES if config is VIDEO else ("768px",):
            length = frames if config is VIDEO else frames - frames % 4
            channels, *cells = release.latent_shape(length, *SIZES[size])
            row = row_bytes(config, tuple(cells), release.text.limit)
            tile = tile_bytes(vae, (1, channels, *cells))
            for card in CARDS:
                fits = [verdict(count * width, row, card) for width in STORED.values() for count in (whole, once)]
                room = "fits" if tile <= card * GIB - RESERVED else "does not fit"
                yield (
                    f"| {name}, {size}, {length} frames | {card} GB | {' | '.join(fits)} "
                    f"| {room}, {tile / GB:.1f} GB | counted; a row {row / GB:.2f} GB |"
                )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=option.count, default=129)
    options = parser.parse_args()
    try:
        RELEASES["2.0"].latents.lengths.check(options.frames, "--frames")
    except ValueError as error:
        parser.error(str(error))
    for line in lines(options.frames):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
