"""Time and peak memory of MMDiT and of whole samplings, side by side with the straightforward rewrite.

Without arguments: on a GPU one row of the released network with random weights at 256px, 129 frames, and the fraction
of the physical limit; elsewhere a reduced network (hidden 384, 1+2 blocks, 3 heads), one forward of one row and of
three, then samplings of 50 and 20 steps from text and from a picture.

    python benchmarks/mmdit.py --device cpu --latents 5x16x24 --dtype bfloat16 --steps 20

Ratios above 1 mean that the network is faster than the rewrite. In a sampling the rewrite computes three rows in every
step, as the original does; ours computes those that count. Measured with PyTorch's layers and attention, without
ComfyUI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _measure import Measured, device_here, measure
from _mmdit_baseline import Baseline, sample

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.mmdit.config import RELEASED, MMDiTConfig  # noqa: E402
from opensora.opensora_models.mmdit.keys import to_checkpoint_key  # noqa: E402
from opensora.opensora_models.mmdit.network import MMDiT  # noqa: E402
from opensora.opensora_models.mmdit.tokens import reference_features  # noqa: E402
from opensora.opensora_models.releases.arithmetic import mmdit_operations  # noqa: E402
from opensora.opensora_models.releases.flow_shift import flow_shift  # noqa: E402
from opensora.opensora_models.releases.known import RELEASES  # noqa: E402
from opensora.opensora_models.sampling.guidance import Branch  # noqa: E402
from opensora.opensora_models.sampling.schedule import sigmas  # noqa: E402
from opensora.opensora_models.sampling.three_rows import rows_of, run_scales, walk  # noqa: E402

ACHIEVABLE = 790e12
"""bfloat16 operations per second an H100 SXM or H200 reaches in large matrix products."""

REDUCED = replace(RELEASED, hidden_size=384, num_heads=3, depth=1, depth_single_blocks=2)
PATCH = RELEASED.patch_size
TEXT_TOKENS = {"reduced": 64, "full": 512}
ROWS = list(Branch)


def main() -> None:
    """Print one line per measurement."""
    options = parse()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    full = options.full or device.type != "cpu"
    latents = options.latents or ((33, 24, 42) if full else (5, 16, 24))
    dtypes = [options.dtype] if options.dtype else ["bfloat16"] if full else ["float32", "bfloat16"]
    for dtype in dtypes:
        bench = Bench(RELEASED if full else REDUCED, latents, getattr(torch, dtype), device, options, full)
        for rows in options.rows or ([1] if full else [1, 3]):
            print(bench.forward(rows), flush=True)
        for steps in options.steps or ([] if full or dtype != dtypes[0] else [50, 20]):
            for use in ("text", "picture"):
                print(bench.sampling(steps, use), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--latents", type=option.size, metavar="TxHxW", help="latent frames, rows, columns")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: both on the CPU, bfloat16 on a GPU")
    parser.add_argument("--full", action="store_true", help="released width and depth (default on a GPU)")
    parser.add_argument(
        "--rows", type=option.count, action="append", help="rows of one forward; may be given several times"
    )
    parser.add_argument(
        "--steps", type=option.count, action="append", help="steps of a sampling; may be given several times"
    )
    parser.add_argument("--repeats", type=option.count, default=3)
    parser.add_argument("--threads", type=option.threads, default=1, help="CPU threads")
    parser.add_argument("--alone", action="store_true", help="without the rewrite (for sizes it has no memory for)")
    options = parser.parse_args()
    if options.latents and (options.latents[1] % PATCH or options.latents[2] % PATCH):
        frames, *sides = options.latents
        near = "x".join(map(str, (frames, *(side + side % PATCH for side in sides))))
        parser.error(f"argument --latents: rows and columns are multiples of {PATCH}; the nearest good value is {near}")
    return options


class Bench:
    """One network with seeded random weights, the rewrite on the same weights, and inputs for both."""

    def __init__(
        self,
        config: MMDiTConfig,
        latents: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        options: argparse.Namespace,
        full: bool,
    ) -> None:
        torch.manual_seed(0)
        self.config, self.latents, self.dtype, self.device, self.options = config, latents, dtype, device, options
        self.network = MMDiT(config, dtype=dtype, device=device).eval().requires_grad_(False)
        for key, value in self.network.state_dict().items():
            value.normal_(float("_norm" in key), 0.1 if value.ndim < 2 else value[0].numel() ** -0.5)
        weights = {to_checkpoint_key(key): value for key, value in self.network.state_dict().items()}
        self.rewrite = Baseline(config, weights)
        self.text_tokens = TEXT_TOKENS["full" if full else "reduced"]
        self.name = f"{'x'.join(map(str, latents))} {str(dtype).removeprefix('torch.')}"

    def inputs(self, has_given: bool = True) -> dict[str, torch.Tensor]:
        """Text, pooled text and reference of the three rows: prompt, negative, negative without reference."""
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

        text, pooled = random(2, self.text_tokens, self.config.context_in_dim), random(2, self.config.vec_in_dim)
        given = torch.zeros(3, self.latents[0], device=self.device)
        given[:2, 0] = float(has_given)
        latent = random(1, self.config.channels, *self.latents).expand(3, -1, -1, -1, -1)
        return {
            "text": text[[0, 1, 1]],
            "pooled": pooled[[0, 1, 1]],
            "reference": reference_features(latent, given),
        }

    def noise(self, rows: int = 1) -> torch.Tensor:
        """Seeded noise of so many rows."""
        shape = (rows, self.config.channels, *self.latents)
        return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(self.device, self.dtype)

    def forward_ways(self, rows: int) -> dict[str, Callable[[], torch.Tensor]]:
        """The rewrite and ours in one call of ``rows`` rows."""
        order = [row % 3 for row in range(rows)]
        x, inputs = self.noise(rows), {key: value[order] for key, value in self.inputs().items()}
        time = torch.full((rows,), 0.6, device=self.device)
        return {
            "rewrite": lambda: self.rewrite(x, time, **inputs),
            "ours": lambda: self.network(x, time, **inputs),
        }

    @torch.inference_mode()
    def forward(self, rows: int) -> str:
        """One call of ``rows`` rows."""
        ways = self._chosen(self.forward_ways(rows))
        measured = measure(ways, self.device, self.options.repeats)
        return f"{self.name} {rows} row(s):{times(measured)}{difference(ways)}{self._limit(rows, measured['ours'])}"

    def _chosen(self, ways: dict[str, Callable[[], torch.Tensor]]) -> dict[str, Callable[[], torch.Tensor]]:
        return {"ours": ways["ours"]} if self.options.alone else ways

    def sampling_ways(self, steps: int, use: Any) -> tuple[dict[str, Callable[[], torch.Tensor]], int]:
        """The rewrite and ours in a whole run from words alone or from a picture, and the rows that ours computes."""
        has_given = use != "text"
        rows, noise = self.inputs(has_given), self.noise()
        shift = flow_shift(self.latents[1] * self.latents[2] / self.config.patch_size**2, self.latents[0])
        levels = sigmas(steps, shift)
        scales = run_scales(RELEASES["2.0"].guidance.presets[use], levels.tolist(), self.latents[0])

        def predict(x: torch.Tensor, sigma: torch.Tensor, branches: Sequence[Branch]) -> list[torch.Tensor]:
            order = [ROWS.index(branch) for branch in branches]
            chosen = {key: value[order] for key, value in rows.items()}
            velocity = self.network(x.repeat(len(order), 1, 1, 1, 1), sigma, **chosen)
            return [x - row[None] * sigma.to(row).view(-1, 1, 1, 1, 1) for row in velocity]

        def ours() -> torch.Tensor:
            levels_here = levels.to(self.device, self.dtype if self.device.type == "cuda" else levels.dtype)
            last = noise
            for step in walk(predict, noise, levels_here, scales, has_given=has_given):
                last = step.after
            return last

        plain = [(each.text, each.image) for each in scales]
        ways = {"rewrite": lambda: sample(self.rewrite, noise, levels.tolist(), rows, plain), "ours": ours}
        return ways, rows_of(scales, has_given)

    @torch.inference_mode()
    def sampling(self, steps: int, use: Any) -> str:
        """A whole run from words alone or from a picture."""
        ways, computed = self.sampling_ways(steps, use)
        ways = self._chosen(ways)
        measured = measure(ways, self.device, max(1, self.options.repeats // 2))  # many calls each
        count = f"{computed} of {3 * steps} rows"
        return f"{self.name} {steps} steps, {use}: {count}{times(measured)}{difference(ways)}"

    def _limit(self, rows: int, ours: Measured) -> str:
        """On a GPU: how near a forward comes to the arithmetic limit."""
        if self.device.type == "cpu":
            return ""
        least = rows * mmdit_operations(self.config)(self.latents, self.text_tokens) / ACHIEVABLE
        return f"  {least / ours.seconds:.0%} of the limit ({least:.3f} s)"


def times(measured: dict[str, Measured]) -> str:
    """Seconds and memory of every way, and the ratio."""
    line = ""
    for name, value in measured.items():
        line += f"  {name} {value.seconds:7.3f} s {value.counted_bytes / 2**20:6.0f} MiB"
    if "rewrite" in measured:
        line += f"  ratio {measured['rewrite'].seconds / measured['ours'].seconds:.2f}"
    return line


def difference(ways: dict[str, Callable[[], torch.Tensor]]) -> str:
    """How far the two results are apart."""
    if "rewrite" not in ways:
        return ""
    ours, plain = ways["ours"]().float(), ways["rewrite"]().float()
    return f"  difference {float((ours - plain).norm() / plain.norm()):.1e}"


if __name__ == "__main__":
    main()
