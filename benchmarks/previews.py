"""What moving previews cost beside a run: the share of its time, and how many steps are shown.

    python benchmarks/previews.py                  clips of all sizes, steps of a second
    python benchmarks/previews.py --step 20        slower steps

The work is real, the steps are not: a clock is turned on by the length of a step. The share cannot exceed that of the
throttle, since after every preview it waits until the preview's cost is so small a part of the time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _measure import device_here

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.previews.pictures import Mode, clip_picture  # noqa: E402
from opensora.opensora_models.previews.throttle import Throttle  # noqa: E402
from opensora.opensora_models.releases.known import RELEASES  # noqa: E402

CLIPS = {
    "1.2": (51, 720, 1280),
    "1.3": (113, 720, 1280),
    "2.0": (129, 576, 1024),
    "2.0 high compression": (128, 576, 1024),
}
"""Frames, height and width."""
STEPS = 60


def lines(step: float, device: torch.device) -> Iterator[str]:
    """A line for every release and mode."""
    for name, size in CLIPS.items():
        latents = torch.randn(1, *RELEASES[name].latent_shape(*size), device=device)
        factors, bias = torch.randn(latents.shape[1], 3), torch.zeros(3)
        for mode in (Mode.FIRST, Mode.SHEET, Mode.LOOP):
            clip_picture(latents, mode, factors, bias)  # the first one of all reads the library that writes JPEG
            ahead, shown = 0.0, 0
            throttle = Throttle(clock=lambda: time.perf_counter() + ahead)  # noqa: B023
            began = throttle.clock()
            for _ in range(STEPS):
                ahead += step
                if throttle.due():
                    with throttle.spending():
                        size_sent = len(clip_picture(latents, mode, factors, bias)["picture"])
                    shown += 1
            share, each = throttle.spent / (throttle.clock() - began), throttle.spent / shown
            yield (
                f"{name}, {tuple(latents.shape[2:])}, {mode.value}: {share:.3%} of the time, {shown} of {STEPS} steps "
                f"shown, {each * 1000:.1f} ms and {size_sent / 1000:.0f} kB each"
            )


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=option.above_zero, default=1.0, help="seconds of a step")
    parser.add_argument("--device", type=device_here, default="cpu")
    options = parser.parse_args()
    for line in lines(options.step, torch.device(options.device)):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
