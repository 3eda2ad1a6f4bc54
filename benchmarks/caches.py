"""How near caches stay to the full run on the tiny trained models, at equal numbers of computed rows.

    python benchmarks/caches.py                             a first look: 8 prompts of one clip, 1.2 and 1.3
    python benchmarks/caches.py --prompts 64 --clips 4      the proof (hours on a CPU)
    python benchmarks/caches.py --prompts 64 --minutes 10       as many prompts as ten minutes a release allow
    python benchmarks/caches.py --report --write            what is measured so far, put into README.md

What was measured is written after every prompt (``--out``); the same command again goes on behind the last whole
prompt. With ``--tables FOLDER`` step tables that lie there are used, and new ones are put there.

Compared are the Step Cache with tables calibrated on other prompts with other noise, core's EasyCache and LazyCache
over their thresholds, and simply fewer steps; all with the same noise. PSNR and SSIM are of decoded frames against the
full run; colour, shape and motion are read off the frames. Curves are interpolated at the rows that the Step Cache
computed; a curve that ends above them counts with its end, which has more rows. Needs ComfyUI (``COMFYUI_PATH`` or the
tree that ``dev.py`` made).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from _curves import Way, gains, mean_with_interval, verdicts
from _readme import keep as keep_result
from _readme import kept
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.comfyui import use_comfyui  # noqa: E402
from support.pack import PACK_ROOT, load_pack  # noqa: E402

use_comfyui()
load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.caching.table_file import (  # noqa: E402
    ENDING,
    CalibratedTables,
    load_tables,
    save_new_tables,
)

SHARES = (70, 60, 50, 40)
EASY = (0.02, 0.05, 0.1, 0.15, 0.2)
LAZY = (0.02, 0.05, 0.1, 0.2)
"""Thresholds; EasyCache computes no fewer rows above the last one."""
CFG, SEED, CALIBRATION_SEED = 5.0, 7, 1000
"""Prompt n is judged with seed ``SEED + 100 n``, which none of the calibration's, 1000 to 1003, is."""
OTHERS = ("easy", "lazy", "fewer", "guidance")
"""Kinds of ways beside the full run and the Step Cache; ``guidance`` is the cache of unguided rows alone."""
STEPS = {"1.2": 30, "1.3": 30, "2.0": 50}
SIZE = (17, 64, 64)
"""Frames, height and width the tiny models were trained at."""


class Studio:
    """The tiny models of a release behind the pack's own sampler."""

    def __init__(self, version: str, options: argparse.Namespace) -> None:
        from opensora.opensora_models.native.model.loading import load_model
        from opensora.opensora_models.native.text.clip import load_text_encoder
        from opensora.opensora_models.native.vae.vae import load_vae
        from opensora.opensora_models.releases.known import RELEASES
        from opensora.training.evaluate import as_trained, prompts_for
        from opensora.training.scenes import combinations, held_out

        models = PACK_ROOT / "demo" / "models"
        self.version, self.options, self.steps = version, options, STEPS[version]
        weights = models / "diffusion_models" / f"opensora-tiny-v{version}.safetensors"
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        self.model = load_model(weights)
        self.vae = load_vae(models / "vae" / f"opensora-tiny-vae-v{version}.safetensors")
        texts = models / "text_encoders"
        clip_l = texts / "opensora-tiny-clip-l.safetensors" if RELEASES[version].text.pooled else None
        self.clip = load_text_encoder(texts / "opensora-tiny-t5.safetensors", clip_l=clip_l)
        # In one random order, so that the first few are of all colours and shapes, however many are asked for.
        self.asked = random.Random(SEED).sample(held_out(), len(held_out()))[: options.prompts]
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

    def tables(self) -> CalibratedTables:
        """Calibrated on prompts that are not judged; those of ``--tables`` where they are there."""
        folder, name = self.options.tables, f"opensora-tiny-v{self.version}{ENDING}"
        if folder is None:
            return self._calibrated()
        if not (folder / name).is_file():
            save_new_tables(lambda: folder / name, self._calibrated())
        sys.stdout.write(f"Step tables: {folder / name}\n")
        return load_tables(folder / name)

    def _calibrated(self) -> CalibratedTables:
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


def settings_of(studio: Studio) -> dict[str, Any]:
    """What results must share to be continued."""
    return {
        "weights": studio.digest,
        "steps": studio.steps,
        "clips": studio.options.clips,
        "cfg": CFG,
        "seed": SEED,
        "size": list(SIZE),
    }


def compare(studio: Studio, earlier: Mapping[str, Any] | None, keep: Callable[[dict[str, Any]], None]) -> None:
    """All prompts, or as many as the minutes allow, behind those of ``earlier``; ``keep`` gets what is known after
    each. Raises ValueError where earlier results are of other weights or settings."""
    start = time.perf_counter()
    tables = studio.tables() if earlier is None else tables_from(earlier["tables"])
    compared = ways(studio, tables)
    compared = [(way, make) for way, make in compared if way.kind in ("full", "step", *studio.options.others)]
    settings = settings_of(studio)
    if earlier is not None:
        known = {each["name"]: each for each in earlier["ways"]}
        if earlier["settings"] != settings or any(way.name not in known for way, _ in compared):
            raise ValueError("The results there are of other weights, settings or ways; choose another --out.")
        compared = [(Way(**known[way.name]), make) for way, make in compared]
    found = [way for way, _ in compared]
    begun = len(found[0].psnr)
    for number in range(begun, len(studio.captions)):
        if number > begun and time.perf_counter() - start > 60 * studio.options.minutes:
            break
        judge(studio, compared, number)
        keep({"settings": settings, "tables": asdict(tables), "ways": [asdict(way) for way in found]})


def tables_from(found: Mapping[str, Any]) -> CalibratedTables:
    """The tables that results were made with."""
    numbered = {name: {int(count): value for count, value in found[name].items()} for name in ("tables", "errors")}
    return CalibratedTables(found["release"], tuple(found["levels"]), **numbered, made=found["made"])


def summary(found: Sequence[Way], clips: int) -> dict[str, Any]:
    """What the page shows of a release."""
    date = datetime.now(timezone.utc).date().isoformat()
    seconds = {way.name: way.seconds for way in found}
    speed = {f"{share}": seconds["full"] / seconds[f"Step Cache {share} %"] for share in SHARES}
    return {
        "date": date,
        "prompts": len(found[0].rows),
        "clips": clips,
        "shares": {share: {**gain, "speed": speed[share]} for share, gain in gains(found).items()},
        "rights": rights(found),
    }


def write(path: Path, results: Mapping[str, Any]) -> None:
    """All or nothing: whatever ends the run leaves the last whole prompt."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results), encoding="utf-8")
    os.replace(part, path)


def earlier(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """What ``--out`` holds already; ends the program where that is nothing of ours, or too little to report."""
    found: Any = {}
    if options.out.is_file():
        try:
            found = json.loads(options.out.read_text(encoding="utf-8"))
        except ValueError:
            found = None
    if not isinstance(found, dict) or not all(isinstance(each, dict) and "ways" in each for each in found.values()):
        parser.error(f"argument --out: '{options.out}' is no result of this benchmark")
    missing = [version for version in options.version if version not in found]
    if options.report and missing:
        parser.error(f"argument --report: '{options.out}' has no result of {', '.join(missing)}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, prints tables and verdicts, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=tuple(STEPS), nargs="+", default=["1.2", "1.3"])
    parser.add_argument("--prompts", type=option.count, default=8)
    parser.add_argument("--clips", type=option.count, default=1, help="of each prompt, from different noise")
    parser.add_argument(
        "--minutes", type=option.above_zero, default=math.inf, help="no prompt begins later, for each release"
    )
    parser.add_argument("--out", type=option.new_file(".json"), default=Path("caches.json"))
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=list(OTHERS), help="what is compared")
    parser.add_argument("--write", action="store_true", help="keep the result in results/ and in README.md")
    parser.add_argument(
        "--tables",
        type=option.new_folder,
        help="folder of the step tables that are compared; made where there are none",
    )
    parser.add_argument("--report", action="store_true", help="only say what --out holds; nothing is measured")
    options = parser.parse_args(arguments)
    results = earlier(parser, options)

    def keep(version: str, measured: dict[str, Any]) -> None:
        results[version] = measured
        write(options.out, results)

    if not options.report:
        measure(options, results, keep)
    for version in (each for each in options.version if each in results):
        report(version, results[version], options.write)


def measure(
    options: argparse.Namespace, results: Mapping[str, Any], keep: Callable[[str, dict[str, Any]], None]
) -> None:
    """Judges prompts of every release asked for."""
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    torch.set_num_threads(1)
    with torch.inference_mode():
        for version in options.version:
            compare(Studio(version, options), results.get(version), functools.partial(keep, version))


def report(version: str, measured: Mapping[str, Any], keeps: bool) -> None:
    """Prints the table and the verdicts of a release, and keeps them for the page."""
    found, clips = [Way(**each) for each in measured["ways"]], measured["settings"]["clips"]
    if keeps:
        keep_result("caches", {**kept("caches"), version: summary(found, clips)})
    heading = f"\nOpen-Sora {version}, {len(found[0].rows)} prompts of {clips} clips"
    sys.stdout.write("\n".join([heading, *table(found), "", *verdicts(found), rights(found)]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
