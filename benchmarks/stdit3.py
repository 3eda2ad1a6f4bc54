"""Time per model call and peak memory of STDiT3, side by side with the straightforward rewrite.

Without arguments: on a GPU the released sizes with random weights and the fraction of the physical limit; elsewhere a
reduced network (hidden 384, 6+6 blocks, 8 heads) at latents of 5x16x16 and 15x30x40, two rows, one thread.

    python benchmarks/stdit3.py --device cpu --version 1.3 --latents 15x30x40 --dtype bfloat16 --mask

Ratios above 1 mean that the network is faster than the rewrite. The network is measured by itself, with PyTorch's
layers and attention, without ComfyUI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _measure import Measured, device_here, measure
from _stdit3_baseline import Baseline

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.releases.stdit3_cost import NetworkSize, operations_per_row  # noqa: E402
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13  # noqa: E402
from opensora.opensora_models.stdit3.keys import to_checkpoint_key  # noqa: E402
from opensora.opensora_models.stdit3.network import STDiT3  # noqa: E402

if TYPE_CHECKING:
    from opensora.opensora_models.stdit3.config import STDiT3Config

ACHIEVABLE = 790e12
"""bfloat16 operations per second an H100 SXM or H200 reaches in large matrix products."""

REDUCED = {"hidden_size": 384, "depth": 6, "num_heads": 8}
STEPS = 30
TEXT_TOKENS = {"reduced": 120, "full": 300}


@dataclass(frozen=True)
class Job:
    """One clip: latents [rows, I, T, Hx, Wx] through one network."""

    name: str
    config: STDiT3Config
    latents: tuple[int, int, int]
    rows: int
    text_tokens: int
    dtype: torch.dtype
    masked: bool

    @property
    def operations(self) -> float:
        """Multiplications and additions of one row; window padding is not counted, since none is computed."""
        window = self.config.kernel_size
        size = NetworkSize(
            hidden_size=self.config.hidden_size,
            depth=self.config.depth,
            in_channels=self.config.in_channels,
            caption_channels=self.config.caption_channels,
            window=None if window is None else window[:2],
        )
        return operations_per_row(size, self.latents, self.text_tokens, count_padding=False)


def main() -> None:
    """Print one line per job."""
    options = parse()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    for job in jobs(options):
        print(report(job, device, options), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--version", choices=("1.2", "1.3"), help="default: both")
    parser.add_argument(
        "--latents", type=option.size, action="append", metavar="TxHxW", help="may be given several times"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: both on the CPU, bfloat16 on a GPU")
    parser.add_argument("--mask", action="store_true", help="some frames are clean already (frame mask)")
    parser.add_argument("--full", action="store_true", help="released width and depth (default on a GPU)")
    parser.add_argument("--rows", type=option.count, default=2, help="rows of one call: 2 = with guidance")
    parser.add_argument("--repeats", type=option.count, default=3)
    parser.add_argument("--threads", type=option.threads, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--alone", action="store_true", help="without the rewrite (for sizes it has no memory for)")
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """What the command line asks for, or the defaults of the device."""
    on_gpu = torch.device(options.device).type != "cpu"
    full = options.full or on_gpu
    released = {"1.2": [(15, 60, 106), (15, 90, 160)], "1.3": [(35, 90, 160)]}
    dtypes = [options.dtype] if options.dtype else ["bfloat16"] if on_gpu else ["float32", "bfloat16"]
    for config in (XL_V12, XL_V13):
        if options.version not in (None, config.version):
            continue
        chosen = config if full else replace(config, **REDUCED)
        sizes = options.latents or (released[config.version] if on_gpu else [(5, 16, 16), (15, 30, 40)])
        for latents in sizes:
            for dtype in dtypes:
                name = f"v{config.version} {'x'.join(map(str, latents))} {dtype}{' masked' if options.mask else ''}"
                tokens = TEXT_TOKENS["full" if full else "reduced"]
                yield Job(name, chosen, latents, options.rows, tokens, getattr(torch, dtype), options.mask)


def ways_of(job: Job, device: torch.device, compiled: bool = False) -> dict[str, Callable[[], torch.Tensor]]:
    """The rewrite and ours, on the same weights and inputs."""
    network, arguments = filled(job, device), inputs(job, device)
    run = torch.compile(network) if compiled else network
    weights = {to_checkpoint_key(key): value for key, value in network.state_dict().items()}
    return {"rewrite": lambda: Baseline(job.config, weights)(**arguments), "ours": lambda: run(**arguments)}


def report(job: Job, device: torch.device, options: argparse.Namespace) -> str:
    """Run one job and put its result into a line."""
    ways, line = ways_of(job, device, options.compile), ""
    with torch.inference_mode():
        if options.alone:
            del ways["rewrite"]
        else:
            ours, plain = ways["ours"]().float(), ways["rewrite"]()
            line = f"  difference {float((ours - plain).norm() / plain.norm()):.1e}"
        measured = measure(ways, device, options.repeats)
    return f"{job.name:34s}{times(measured)}{line}{limit(job, device, measured['ours'])}"


def times(measured: dict[str, Measured]) -> str:
    """Seconds and memory of every way, and the ratio."""
    line = ""
    for name, value in measured.items():
        memory = "" if value.peak_bytes is None else f" {value.peak_bytes / 2**20:6.0f} MiB"
        line += f"  {name} {value.seconds:7.3f} s{memory}"
    if "rewrite" in measured:
        line += f"  ratio {measured['rewrite'].seconds / measured['ours'].seconds:.2f}"
    return line


def limit(job: Job, device: torch.device, ours: Measured) -> str:
    """On a GPU: seconds of a whole sampling, and how near to the arithmetic limit it comes."""
    if device.type == "cpu":
        return ""
    least = job.rows * job.operations / ACHIEVABLE
    return f"  {STEPS} steps {STEPS * ours.seconds:.1f} s, {least / ours.seconds:.0%} of the limit ({least:.3f} s)"


def filled(job: Job, device: torch.device) -> STDiT3:
    """A network with seeded random weights."""
    torch.manual_seed(0)
    network = STDiT3(job.config, dtype=job.dtype, device=device).eval().requires_grad_(False)
    for key, value in network.state_dict().items():
        if key != "rope.freqs":
            value.normal_(0, 0.1 if value.ndim < 2 else value[0].numel() ** -0.5)
    return network


def inputs(job: Job, device: torch.device) -> dict[str, Any]:
    """Seeded random inputs of one call."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, job.dtype)

    mask = torch.ones(job.rows, job.latents[0], dtype=torch.bool, device=device)
    mask[:, : max(1, job.latents[0] // 3)] = False
    return {
        "x": random(job.rows, job.config.in_channels, *job.latents),
        "timestep": torch.full((job.rows,), 600.0, device=device),
        "text": [random(job.text_tokens, job.config.caption_channels) for _ in range(job.rows)],
        "fps": torch.full((job.rows,), 24.0, device=device),
        "height": job.latents[1] * 8,
        "width": job.latents[2] * 8,
        "frame_mask": mask if job.masked else None,
    }


if __name__ == "__main__":
    main()
