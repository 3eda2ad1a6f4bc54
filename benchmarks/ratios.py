"""How this pack's ways compare with the plain ones, side by side in one run: the table of the README.

    python benchmarks/ratios.py             measures and prints the table (minutes on a CPU, one thread)
    python benchmarks/ratios.py --write     and keeps the numbers in results/ratios.json and the table in README.md

Networks and autoencoders are narrow ones with random weights beside the straightforward rewrite; both run in turns in
one process, and the median of their CPU time counts. The last row is the wall clock of a decode whose parts are
written to a file one after the other, beside the same with the parts written while the next one is decoded.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent))  # the scripts put another folder into the first place
import mmdit
import stdit3
import vae
from _measure import measure
from _readme import keep, ratio_table

from opensora.devtools import option_types as option
from opensora.opensora_models.storage.beside import beside
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate

LATENTS, CLIP, PARTS = (5, 30, 40), (17, 64, 96), 4
CPU = torch.device("cpu")
Ways = Mapping[str, Callable[[], Any]]
Row = dict[str, Any]


def rows(repeats: int) -> Iterator[Row]:
    """A row a comparison, each as soon as it is measured."""
    with torch.inference_mode():
        for name, ways in network_ways():
            yield row(name, ways, repeats)
        for name, ways in decode_ways():
            yield row(name, ways, repeats)
        yield written_row(repeats)


def network_ways() -> Iterator[tuple[str, Ways]]:
    """One call with two rows of each network, and a run of 2.0."""
    for config in (stdit3.XL_V12, stdit3.XL_V13):
        for dtype in (torch.float32, torch.bfloat16):
            narrow = replace(config, **stdit3.REDUCED)
            job = stdit3.Job(config.version, narrow, LATENTS, 2, stdit3.TEXT_TOKENS["reduced"], dtype, False)
            yield f"{config.version}: the network, {said(dtype)}", stdit3.ways_of(job, CPU)
    options = Namespace(alone=False, repeats=1)
    for dtype in (torch.float32, torch.bfloat16):
        bench = mmdit.Bench(mmdit.REDUCED, (5, 16, 24), dtype, CPU, options, False)
        yield f"2.0: the network, {said(dtype)}", bench.forward_ways(3)
        if dtype == torch.float32:
            ways, computed = bench.sampling_ways(10, "text")
            yield f"2.0: a run of 10 steps from text, {computed} of 30 rows", ways


def decode_ways() -> Iterator[tuple[str, Ways]]:
    """The decoders in the plan the nodes take."""
    frames, height, width = CLIP
    plan = vae.plans(32, None)["auto"]
    for version in ("1.2", "1.3"):
        model, plain = (vae.build(version, 32, CPU, torch.float32) for _ in range(2))
        latents = torch.randn(1, model.latent_channels, model.latents_of(frames), height // 8, width // 8)
        out = torch.empty(1, 3, model.frames_of(latents.shape[2]), height, width)
        ways = {
            "rewrite": partial(vae.plain_decode, vae.unfold(plain), latents, out),
            "ours": partial(model.decode, latents, None, plan, out=out),
        }
        yield f"{version}: decoding, float32", ways


def said(dtype: torch.dtype) -> str:
    """A dtype in a word."""
    return str(dtype).removeprefix("torch.")


def row(name: str, ways: Ways, repeats: int) -> Row:
    """Ratios of one comparison: above 1 is faster, below 1 needs less memory."""
    ours, plain = ways["ours"]().float(), ways["rewrite"]().float()
    apart = float((ours - plain).norm() / plain.norm())
    del ours, plain
    found = measure(ways, CPU, repeats)
    plainly, own = found["rewrite"], found["ours"]
    memory = own.counted_bytes / plainly.counted_bytes
    return {"name": name, "time": plainly.seconds / own.seconds, "memory": memory, "apart": apart, "clock": "CPU"}


def written_row(repeats: int) -> Row:
    """Decoding some parts into a file, one after the other and with the files beside."""
    model = vae.build("1.2", 16, CPU, torch.float32)
    latents = torch.randn(1, 4, 5 * PARTS, CLIP[1] // 8, CLIP[2] // 8)
    seconds: dict[str, list[float]] = {"after": [], "beside": []}
    files = set()
    for _ in range(repeats):
        for name, taken in seconds.items():
            start = time.perf_counter()
            files.add(to_file(model, latents, name == "beside"))
            taken.append(time.perf_counter() - start)
    if len(files) != 1:
        raise RuntimeError("The files of the two ways differ.")
    after, overlapped = (statistics.median(taken) for taken in seconds.values())
    name = f"1.2: decoding {PARTS} parts into a file, written beside"
    return {"name": name, "time": after / overlapped, "memory": None, "apart": 0.0, "clock": "wall"}


def to_file(model: Any, latents: torch.Tensor, overlapped: bool) -> bytes:
    """The video's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        video = GroupedVideo(Path(folder) / "parts", FORMATS["mp4 (h264)"], exact_rate(24), 18)
        with beside() if overlapped else nullcontext() as writer:
            for number, pixels in enumerate(model.decoded(latents)):
                write = partial(video.write, number, ((pixels[0] + 1) / 2).movedim(0, -1))
                writer.start(write) if writer else write()
        path = Path(folder) / "out.mp4"
        video.join(PARTS, path, None)
        return path.read_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and keeps what was measured where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=option.count, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = []
    for found in rows(options.repeats):
        sys.stderr.write(f"{found}\n")
        measured.append(found)
    machine = f"{platform.machine()}, one thread, torch {torch.__version__.partition('+')[0]}"
    record = {"date": datetime.now(timezone.utc).date().isoformat(), "machine": machine, "rows": measured}
    sys.stdout.write("\n".join(ratio_table(record)) + "\n")
    if options.write:
        keep("ratios", record)


if __name__ == "__main__":
    main()
