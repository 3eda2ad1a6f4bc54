"""How near caches stay to the full run on the tiny trained models, at equal numbers of computed rows.

    python benchmarks/caches.py                             a first look: 8 prompts of one clip, 1.2 and 1.3
    python benchmarks/caches.py --prompts 64 --clips 4      the proof (hours on a CPU)
    python benchmarks/caches.py --prompts 64 --clips 1 --minutes 10     as many prompts as ten minutes a release allow

What was measured is written after every prompt (``--out``), and with ``--tables FOLDER`` the step tables as well.

Compared are the Step Cache with tables calibrated on other prompts, core's EasyCache and LazyCache over their
thresholds, and simply fewer steps; all with the same noise. PSNR and SSIM are of decoded frames against the full run;
colour, shape and motion are read off the frames. Curves are interpolated at the rows that the Step Cache computed.
Needs ComfyUI (``COMFYUI_PATH`` or the tree that ``dev.py`` made).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.comfyui import use_comfyui  # noqa: E402
from support.pack import PACK_ROOT, load_pack  # noqa: E402

use_comfyui()
load_pack()
from opensora.opensora_models.caching.table_file import ENDING, save_new_tables  # noqa: E402

SHARES = (70, 60, 50, 40)
EASY = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45)
LAZY = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
CFG, SEED, CALIBRATION_SEED = 5.0, 1, 1000
STEPS = {"1.2": 30, "1.3": 30, "2.0": 50}
SIZE = (17, 64, 64)
"""Frames, height and width the tiny models were trained at."""
MARGIN = 4.0
"""dB above the best of the others that are asked for."""


@dataclass
class Way:
    """One way of computing less, and what came of it: a number a prompt, the mean of its clips."""

    name: str
    kind: str
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    seconds: float = 0.0
    right: dict[str, int] = field(default_factory=lambda: {"colour": 0, "shape": 0, "motion": 0})
    clips: int = 0

    @property
    def mean_rows(self) -> float:
        """Rows a clip, which adaptive caches have a mean of."""
        return statistics.fmean(self.rows)


class Studio:
    """The tiny models of a release behind the pack's own sampler."""

    def __init__(self, version: str, options: argparse.Namespace) -> None:
        from opensora.opensora_models.native.model.loading import load_model
        from opensora.opensora_models.native.text.clip import load_text_encoder
        from opensora.opensora_models.native.vae.vae import load_vae
        from opensora.training.evaluate import as_trained, prompts_for
        from opensora.training.scenes import combinations, held_out

        models = PACK_ROOT / "demo" / "models"
        self.version, self.options, self.steps = version, options, STEPS[version]
        self.model = load_model(models / "diffusion_models" / f"opensora-tiny-v{version}.safetensors")
        self.vae = load_vae(models / "vae" / f"opensora-tiny-vae-v{version}.safetensors")
        self.clip = load_text_encoder(models / "text_encoders" / "opensora-tiny-t5.safetensors")
        # In one random order, so that the first few are of all colours and shapes.
        self.asked = random.Random(SEED).sample(held_out(), options.prompts)
        self.captions = as_trained(prompts_for(self.asked), version)
        known = [row for row in combinations() if row not in held_out()]
        self.for_calibration = as_trained(prompts_for(known[:: max(1, len(known) // 4)][:4]), version)
        self.rows = 0
        self._count_rows()

    def _count_rows(self) -> None:
        kind = type(self.model.model.diffusion_model)
        original = kind._run_blocks

        def counted(network: Any, tokens: Any, *more: Any) -> Any:
            self.rows += len(tokens[0] if isinstance(tokens, list) else tokens)
            return original(network, tokens, *more)

        kind._run_blocks = counted

    def encoded(self, caption: str) -> tuple[Any, Any]:
        """Positive and negative conditioning."""
        from opensora.opensora_models.native.text.encoding import encode_both

        pair = encode_both(self.clip, caption, "", self.model)
        return pair.positive, pair.negative

    def latent(self, clips: int) -> dict[str, Any]:
        """An empty latent of so many clips."""
        from opensora.opensora_models.releases.known import RELEASES

        return {"samples": torch.zeros(clips, *RELEASES[self.version].latent_shape(*SIZE))}

    def made(self, model: Any, text: tuple[Any, Any], number: int, steps: int) -> tuple[Tensor, float, float]:
        """Frames [clips, T, H, W, 3], rows a clip, and the seconds of the sampling."""
        from opensora.opensora_models.native.sampling.clips import ClipRun, sample_clip

        clips, self.rows, start = self.options.clips, 0, time.perf_counter()
        done = sample_clip(model, *text, self.latent(clips), ClipRun(steps, SEED + 100 * number, CFG))
        seconds, rows = time.perf_counter() - start, self.rows / clips
        frames = self.vae.decode(done["samples"])
        return frames.reshape(clips, -1, *frames.shape[-3:]).clamp(0, 1), rows, seconds

    def tables(self) -> Any:
        """Calibrated on prompts that are not judged."""
        from opensora.opensora_models.native.sampling.cached_steps import CalibrationRun, calibrate

        texts = [self.encoded(caption) for caption in self.for_calibration]
        run = CalibrationRun(self.steps, CALIBRATION_SEED, CFG)
        return calibrate(self.model, [positive for positive, _ in texts], texts[0][1], self.latent(1), run)


Make = Callable[[], tuple[Any, int]]
"""A MODEL and the steps to run it for."""


def ways(studio: Studio, tables: Any) -> list[tuple[Way, Make]]:
    """Everything that is compared; the full run first."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    from opensora.opensora_models.caching.guidance_rows import GuidanceReuse
    from opensora.opensora_models.native.model.step_cache import CachedRun, with_step_cache

    model, steps = studio.model, studio.steps
    found: list[tuple[Way, Make]] = [(Way("full", "full"), lambda: (model, steps))]
    for share in SHARES:
        run = CachedRun(tables.of_share(share), GuidanceReuse())
        found.append((Way(f"Step Cache {share} %", "step"), lambda run=run: (with_step_cache(model, run), steps)))
        fewer = round(steps * share / 100)
        found.append((Way(f"{fewer} steps", "fewer"), lambda fewer=fewer: (model, fewer)))
    for every in (2, 3, 5):
        run = CachedRun(None, GuidanceReuse(every, 0.35))
        made = Way(f"guidance every {every}", "guidance")
        found.append((made, lambda run=run: (with_step_cache(model, run), steps)))
    for kind, node, thresholds in (("easy", EasyCacheNode, EASY), ("lazy", LazyCacheNode, LAZY)):
        for threshold in thresholds:

            def made_by_core(node: Any = node, threshold: float = threshold) -> tuple[Any, int]:
                return node.execute(model, threshold, 0.15, 0.95, False).args[0], steps

            found.append((Way(f"{kind} {threshold:g}", kind), made_by_core))
    return found


def judge(studio: Studio, compared: list[tuple[Way, Make]], number: int) -> None:
    """Runs one prompt in every way and notes what it makes."""
    from opensora.opensora_models.vae.quality import psnr, ssim
    from opensora.training.reading import read_clip

    text, full = studio.encoded(studio.captions[number]), None
    for way, make in compared:
        model, steps = make()
        frames, rows, seconds = studio.made(model, text, number, steps)
        full = frames if full is None else full
        way.rows.append(rows)
        way.seconds += seconds
        pairs = list(zip(frames, full, strict=True))
        way.psnr.append(statistics.fmean(value for pair in pairs for value in psnr(*pair)))
        way.ssim.append(statistics.fmean(value for pair in pairs for value in ssim(*pair)))
        for clip in frames:
            reading = read_clip((clip * 255 + 0.5).to(torch.uint8).numpy())
            for index, name in enumerate(way.right):
                way.right[name] += getattr(reading, name) == studio.asked[number][index]
        way.clips += len(frames)


def at_rows(curve: Sequence[Way], rows: float) -> list[float] | None:
    """PSNR a prompt of a family of ways, between its two nearest in rows; None where it has none so few or so many."""
    ordered = sorted(curve, key=lambda way: way.mean_rows)
    for low, high in zip(ordered, ordered[1:], strict=False):
        if low.mean_rows <= rows <= high.mean_rows:
            span = high.mean_rows - low.mean_rows
            share = 0.0 if span == 0 else (rows - low.mean_rows) / span
            return [(1 - share) * a + share * b for a, b in zip(low.psnr, high.psnr, strict=True)]
    return None


def mean_with_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over prompts."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def verdicts(found: Sequence[Way]) -> list[str]:
    """A line for every share: the distance to the best of the others at equal rows."""
    lines = []
    for way in (each for each in found if each.kind == "step"):
        families = {kind: [each for each in found if each.kind == kind] for kind in ("easy", "lazy", "fewer")}
        others = {kind: at_rows(family, way.mean_rows) for kind, family in families.items()}
        known = {kind: values for kind, values in others.items() if values is not None}
        if not known:
            lines.append(f"{way.name}: no other way computes {way.mean_rows:.1f} rows")
            continue
        best = max(known, key=lambda kind: statistics.fmean(known[kind]))
        gain, half = mean_with_interval([a - b for a, b in zip(way.psnr, known[best], strict=True)])
        bar = "above" if gain >= MARGIN else "below"
        lines.append(
            f"{way.name}, {way.mean_rows:.1f} rows: {gain:+.1f} ± {half:.1f} dB against {best} "
            f"({statistics.fmean(known[best]):.1f}), {bar} the bar of {MARGIN:g} dB"
        )
    return lines


def rights(found: Sequence[Way]) -> str:
    """Which shares of the Step Cache lie below those of the full run by more than their 95 % interval."""
    from opensora.training.evaluate import interval

    full = next(way for way in found if way.kind == "full")
    lower = [
        f"{way.name}: {name} {count}/{way.clips} against {full.right[name]}/{full.clips}"
        for way in (each for each in found if each.kind == "step")
        for name, count in way.right.items()
        if interval(count / way.clips, way.clips)[1] < full.right[name] / full.clips
    ]
    return "; ".join(lower) or "No share right of the Step Cache lies below the full run's beyond its interval."


def table(found: Sequence[Way]) -> list[str]:
    """Markdown: a row a way, with 95 % intervals."""
    from opensora.training.evaluate import told

    lines = ["| way | rows a clip | PSNR | SSIM | s a clip | right |", "| --- | --- | --- | --- | --- | --- |"]
    for way in found:
        level, half = mean_with_interval(way.psnr)
        right = told({name: count / way.clips for name, count in way.right.items()}, way.clips)
        lines.append(
            f"| {way.name} | {way.mean_rows:.1f} | {level:.1f} ± {half:.1f} | {statistics.fmean(way.ssim):.4f} "
            f"| {way.seconds / way.clips:.2f} | {right} |"
        )
    return lines


def compare(studio: Studio, options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> list[Way]:
    """All prompts, or as many as the minutes allow; ``keep`` gets what is known after each."""
    start, tables = time.perf_counter(), studio.tables()
    if options.tables is not None:
        path = options.tables / f"opensora-tiny-v{studio.version}{ENDING}"
        save_new_tables(lambda: path, tables)
    compared = ways(studio, tables)
    found = [way for way, _ in compared]
    for number in range(len(studio.captions)):
        if number and time.perf_counter() - start > 60 * options.minutes:
            break
        judge(studio, compared, number)
        keep({"tables": dict(tables.tables), "ways": [asdict(way) for way in found]})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, prints tables and verdicts, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=tuple(STEPS), nargs="*", default=["1.2", "1.3"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--clips", type=int, default=1, help="of each prompt, from different noise")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no prompt begins later, for each release")
    parser.add_argument("--out", type=Path, default=Path("caches.json"))
    parser.add_argument("--tables", type=Path, help="folder for the step tables that are compared")
    options = parser.parse_args(arguments)
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}

    def keep(version: str, measured: dict[str, Any]) -> None:
        results[version] = measured
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")

    with torch.inference_mode():
        for version in options.version:
            start = time.perf_counter()
            found = compare(Studio(version, options), options, functools.partial(keep, version))
            made = f"{len(found[0].rows)} prompts of {options.clips} clips, {time.perf_counter() - start:.0f} s in all"
            lines = [f"\nOpen-Sora {version}, {made}", *table(found), "", *verdicts(found), rights(found)]
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
