"""What a GPU makes of the released sizes, within a budget of minutes: random weights, torch and this repository alone.

    python benchmarks/gpu.py --minutes 8                    jobs in order of worth, as many as fit
    python benchmarks/gpu.py --only "1.2,cache"             only jobs whose names hold one of these
    python benchmarks/gpu.py --comfyui PATH                 KSampler of that ComfyUI too, with its memory management
    python benchmarks/gpu.py --device cpu                   a dry run: every job, at sizes that mean nothing

After every job the results so far are written (``--out``, JSON), so that whatever ends the run leaves them. A table
follows at the end; a run's seconds are extrapolated from single calls and say so. Targets are those of an H100 or H200.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from _clips import CLIPS, Networks
from _gpu_jobs import Job, Place, jobs
from _kitchen import version
from _measure import device_here

from opensora.devtools import option_types as option

GIB = 2**30
LARGE_CARD = 60 * GIB
"""Memory from which all networks may stay on the card."""
Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the jobs; the exit status is 1 if one failed, 2 if a word of ``--only`` names none."""
    options = parse(arguments)
    started = time.monotonic()
    place = place_of(torch.device(options.device))
    offered = list(all_jobs(options, place))
    for word in options.only:
        if not any(word in job.name for job in offered):
            names = "\n  ".join(job.name for job in offered)
            sys.stderr.write(f"gpu.py: error: --only: no job's name holds '{word}'; they are\n  {names}\n")
            return 2
    chosen = [job for job in offered if _wanted(job, options.only)]
    record: Record = {**about(place), "minutes": options.minutes, "jobs": []}
    for job in chosen:
        left = 60 * options.minutes - (time.monotonic() - started)
        record["jobs"].append(carried_out(job, place, left))
        record["seconds"] = time.monotonic() - started
        write(options.out, record)
        sys.stdout.write(f"{line(record['jobs'][-1])}\n")
        sys.stdout.flush()
    sys.stdout.write("\n" + "\n".join(table(record)) + "\n")
    return int(any(job["state"] == "failed" for job in record["jobs"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=option.amount, default=8.0, help="no job begins that would not end by then")
    parser.add_argument("--only", type=option.words, default=[], metavar="WORD,WORD")
    parser.add_argument("--comfyui", type=option.folder, metavar="PATH", help="a ComfyUI to measure as well")
    parser.add_argument("--out", type=option.new_file(".json"), default=Path("gpu.json"), help="where the results go")
    options = parser.parse_args(arguments)
    if options.comfyui is not None and not (options.comfyui / "main.py").is_file():
        parser.error(f"argument --comfyui: there is no ComfyUI in '{options.comfyui}': it has no main.py")
    return options


def place_of(device: torch.device) -> Place:
    """The device and how it is used."""
    dry = device.type != "cuda"
    if dry:
        torch.set_num_threads(1)  # what is so small only waits for others
    keep = dry or torch.cuda.get_device_properties(device).total_memory > LARGE_CARD
    dtype = torch.float32 if dry else torch.bfloat16
    return Place(device, dtype, Networks(device, dtype, keep), dry, repeats=1 if dry else 3)


def about(place: Place) -> Record:
    """Where and with what it was measured."""
    cuda = place.device.type == "cuda"
    card = torch.cuda.get_device_properties(place.device) if cuda else None
    return {
        "card": card.name if card else "CPU (dry run)",
        "memory_gib": round(card.total_memory / GIB, 1) if card else None,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "comfy_kitchen": version(),
        "dtype": str(place.dtype).removeprefix("torch."),
        "dry_run": place.dry,
    }


def all_jobs(options: argparse.Namespace, place: Place) -> Iterator[Job]:
    """Those of this repository, and those of a ComfyUI where one is named."""
    yield from jobs(place.dry)
    if options.comfyui:
        from _gpu_comfyui import comfyui_jobs  # imports ComfyUI

        yield from comfyui_jobs(options.comfyui, place.dry)


def _wanted(job: Job, words: Sequence[str]) -> bool:
    return not words or any(word in job.name for word in words)


def carried_out(job: Job, place: Place, left: float) -> Record:
    """The result of one job, or why there is none."""
    if job.seconds > left:
        return {"name": job.name, "state": "no time", "needs": job.seconds, "left": max(0.0, left)}
    start = time.monotonic()
    try:
        with torch.inference_mode():
            found = {"state": "done", "result": job.run(place)}
    except Exception as error:
        found = {"state": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"name": job.name, **found, "took": time.monotonic() - start}


def write(path: Path, record: Record) -> None:
    """All or nothing, so that whatever ends the run leaves the last whole file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(part, path)


def line(job: Record) -> str:
    """One job in a line."""
    if job["state"] == "done":
        return f"{job['name']}: done in {job['took']:.1f} s"
    reason = job.get("error") or f"needs {job['needs']:.0f} s, {job['left']:.0f} s are left"
    return f"{job['name']}: {job['state']} ({reason})"


def table(record: Record) -> Iterator[str]:
    """Markdown, as ``benchmarks/README.md`` keeps it: a row a clip."""
    yield f"{record['card']}, {record['date']}, torch {record['torch']}, {record['dtype']}"
    yield ""
    heads = ("clip", "rows at once", "kernels", "s a row", "s the run (extrapolated)", "target", "of the limit")
    yield f"| {' | '.join((*heads, 'weights', 'peak'))} |"
    yield "| --- " * (len(heads) + 2) + "|"
    for clip in CLIPS:
        for job in record["jobs"]:
            if job["name"].startswith(clip) and job["state"] == "done" and "target_run" in job["result"]:
                yield from _rows(clip, job)


def _rows(clip: str, job: Record) -> Iterator[str]:
    result = job["result"]
    kernels = next((word for word in ("fused", "ComfyUI") if word in job["name"]), "PyTorch")
    target = "-" if result["target_run"] is None else f"{result['target_run']:g} s"
    for name, found in result.items():
        if isinstance(found, dict) and "row" in found:
            share = "-" if found["share_of_limit"] is None else f"{found['share_of_limit']:.1%}"
            peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / GIB:.2f} GiB"
            peak = " ".join(filter(None, [peak, found.get("peak_is")]))
            yield (
                f"| {clip} | {name.split()[0]} | {kernels} | {found['row']:.3f} | {found['run']:.1f} | {target} "
                f"| {share} | {result['weights_bytes'] / GIB:.2f} GiB | {peak} |"
            )


if __name__ == "__main__":
    sys.exit(main())
