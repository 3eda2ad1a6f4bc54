"""What it costs to share a clip among devices: bytes, counted and by formula, and predicted seconds.

    python benchmarks/parallel.py                 the tables in Markdown: nothing is computed, no device is needed
    python benchmarks/parallel.py --count 3       a small network of each release by three processes of this machine,
                                                  what each sent counted and set beside the formula
    python benchmarks/parallel.py --time 4        seconds of a step of 2.0 at 768px on one and on four GPUs of this
                                                  machine, random weights; without so many GPUs a dry run of a tiny
                                                  network by processes of the CPU

Seconds of arithmetic are operations by the rate a call was published to reach on one H100; seconds of traffic are
bytes by the rate of the link and the start of every exchange, nothing hidden behind arithmetic. Rows are those of a
guided step. The plan is the one that the sampler chooses, too; devices that would cost more time than they save wait.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[0] = str(TESTS)
from support.pack import load_pack  # noqa: E402

load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.opensora_models.mmdit.config import RELEASED as XL_V20  # noqa: E402
from opensora.opensora_models.mmdit.config import MMDiTConfig  # noqa: E402
from opensora.opensora_models.mmdit.network import MMDiT  # noqa: E402
from opensora.opensora_models.parallel.choice import ELEMENT, choose_plan, plan_of_call, predicted_seconds  # noqa: E402
from opensora.opensora_models.parallel.clips import Clip, MMDiTClip, STDiT3Clip  # noqa: E402
from opensora.opensora_models.parallel.ranks import Ranks, direct_ranks, loopback_ranks  # noqa: E402
from opensora.opensora_models.parallel.stack import Crew, shared_mmdit  # noqa: E402
from opensora.opensora_models.parallel.traffic import LINKS, Link, busiest_sender, seconds_of_call  # noqa: E402
from opensora.opensora_models.releases.stdit3_cost import token_grid  # noqa: E402
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13  # noqa: E402
from opensora.opensora_models.transformer.stack import STACK_HOOK  # noqa: E402
from support.parallel_cases import CASES, SIZE, V20, Case, mmdit_inputs  # noqa: E402

TEXT_20, TEXT_TINY = 512, 7
DEVICES = range(1, 9)


@dataclass(frozen=True)
class Job:
    """One step of a clip, of so many rows."""

    name: str
    clip: Clip
    rows: int


def stdit3_job(name: str, version: str, latents: tuple[int, int, int]) -> Job:
    """Two rows of 1.2 or 1.3."""
    frames, *grid = token_grid(latents)
    return Job(name, STDiT3Clip({"1.2": XL_V12, "1.3": XL_V13}[version], frames, (grid[0], grid[1])), 2)


def mmdit_job(name: str, latents: tuple[int, int, int], rows: int) -> Job:
    """Rows of 2.0."""
    frames, height, width = latents
    return Job(name, MMDiTClip(XL_V20, frames * height * width // XL_V20.patch_size**2, TEXT_20), rows)


COLUMNS = (
    *("Clip, rows of a step", "Devices", "Link", "Plan", "Busiest", "GB sent a step and rank", "Arithmetic s"),
    *("Traffic s", "Step s", "Times faster"),
)
JOBS = (
    stdit3_job("1.2, 480p, 51 frames", "1.2", (15, 60, 106)),
    stdit3_job("1.2, 720p, 51 frames", "1.2", (15, 90, 160)),
    stdit3_job("1.2, 720p, 102 frames", "1.2", (30, 90, 160)),
    stdit3_job("1.3, 360p, 113 frames", "1.3", (35, 45, 80)),
    stdit3_job("1.3, 720p, 113 frames", "1.3", (35, 90, 160)),
    mmdit_job("2.0, 256px, 129 frames", (33, 24, 42), 2),
    mmdit_job("2.0, 768px, 129 frames", (33, 72, 128), 2),
    mmdit_job("2.0, 768px, 129 frames, image to video", (33, 72, 128), 3),
)


def lines() -> Iterator[str]:
    """The table: one line a clip, number of devices and link."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- " * len(COLUMNS) + "|"
    for job in JOBS:
        for devices in DEVICES:
            for link in LINKS:
                yield line(job, devices, link)


def line(job: Job, devices: int, link: Link) -> str:
    """The plan that is chosen, and what it costs."""
    rows, clip = job.rows, job.clip
    plan = plan_of_call(rows, clip, devices, link)
    traffic, step = seconds_of_call(plan, rows, clip, ELEMENT, link), predicted_seconds(plan, rows, clip, link)
    alone = rows * clip.operations / clip.rate
    waiting = f", {devices - plan.ranks} wait" if plan.ranks < devices else ""
    work, sent = plan.work(rows, clip) / rows, busiest_sender(plan, rows, clip, ELEMENT) / 1e9
    dealt = f"{devices} | {link.name} | {plan.rows} x {plan.sequence}{waiting} | {work:.1%} | {sent:.2f}"
    return f"| {job.name}, {rows} | {dealt} | {step - traffic:.2f} | {traffic:.3f} | {step:.2f} | {alone / step:.2f} |"


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from support.parallel_cases import main
main(sys.argv[2], int(sys.argv[3]))
"""


def counted(ranks: int) -> Iterator[str]:
    """Tiny networks by real processes over the loopback: bytes sent beside the formula."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, str(TESTS), folder]
        processes = [subprocess.Popen([*command, str(rank)]) for rank in range(SIZE)]
        if any([process.wait() for process in processes]):
            raise SystemExit("A rank ended with an error; see above.")
        found = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    yield "| Case | Plan | Bytes sent by each rank | Formula | Largest difference |"
    yield "| --- | --- | --- | --- | --- |"
    for name, case in CASES.items():
        if case.ranks == ranks:
            each = [result[name] for result in found]
            sent, formula = ([rank[key] for rank in each] for key in ("sent", "formula"))
            plan = " x ".join(map(str, each[0]["plan"]))
            difference = max(rank["rounded"] for rank in each)
            yield f"| {name} | {plan} | {sent} | {'the same' if sent == formula else formula} | {difference:.1e} |"


TIMED = """
import sys
sys.path.insert(0, sys.argv[1])
from support.pack import load_pack
load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.benchmarks.parallel import time_as
time_as(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""
RUNS = 3
"""Of which the first warms up."""


def timed(ranks: int) -> Iterator[str]:
    """A step of 2.0 alone and together, by one process a GPU. Where GPUs are too few, a dry run on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", TIMED, str(TESTS), folder]
        processes = [subprocess.Popen([*command, str(rank), str(ranks)]) for rank in range(ranks)]
        if any([process.wait() for process in processes]):
            raise SystemExit("A rank ended with an error; see above.")
        found = json.loads(Path(folder, "timed.json").read_text(encoding="utf-8"))
    yield "| Cards | Date | Clip, rows of a step | Plan | Link | s a step on one card | s a step | |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    alone, together = found["alone"], found["together"]
    yield (
        f"| {ranks} × {found['card']} | {time.strftime('%Y-%m-%d')} | {found['clip']}, 2 | {found['plan']} | "
        f"{found['link']} | {alone:.3f} | {together:.3f} | {alone / together:.2f} times as fast, largest difference "
        f"{found['difference']:.1e} of {found['largest']:.1e} |"
    )


def timed_case(ranks: int) -> tuple[Case, bool]:
    """What so many ranks time, and whether they have a GPU each."""
    gpus = torch.cuda.device_count() >= ranks
    return Case(XL_V20, ranks, 2, (33, 72, 128), {"text": TEXT_20}) if gpus else Case(V20, ranks, rows=2), gpus


def check_devices(ranks: int) -> None:
    """Raises ValueError for ranks that cannot share the step that is timed, with the nearest that can."""
    if ranks < 2:
        raise ValueError("nothing is shared; the nearest good value is 2")
    case, _ = timed_case(ranks)
    assert isinstance(case.config, MMDiTConfig)
    image = math.prod(case.latents) // case.config.patch_size**2
    choose_plan(case.rows, MMDiTClip(case.config, image, case.options.get("text", TEXT_TINY)), ranks)


def time_as(folder: str, rank: int, ranks: int) -> None:
    """Be one rank of :func:`timed`; rank 0 writes ``timed.json`` into ``folder``."""
    from torch.distributed import FileStore, PrefixStore

    case, gpus = timed_case(ranks)
    device, dtype = torch.device("cuda", rank) if gpus else torch.device("cpu"), torch.float32
    if gpus:
        torch.cuda.set_device(device)
        dtype = torch.bfloat16
    store = FileStore(str(Path(folder) / "store"), ranks)

    def open_group(name: str, place: int, count: int) -> Ranks:
        return (direct_ranks if gpus else loopback_ranks)(PrefixStore(name, store), place, count, 60, 60)

    torch.manual_seed(3)
    with device:
        network = MMDiT(case.config, dtype=dtype).eval()
    inputs = {name: value.to(device, dtype) for name, value in mmdit_inputs(case).items()}
    crew = Crew(open_group("everybody", rank, ranks), open_group)

    def run(options: dict[str, object]) -> tuple[torch.Tensor, float]:
        for _ in range(RUNS):
            crew.everybody.try_out()  # all begin together
            began = time.perf_counter()
            out = network(**inputs, transformer_options=dict(options)).cpu()
            seconds = time.perf_counter() - began
        return out, seconds

    with torch.no_grad():
        alone, seconds_alone = run({})
        together, seconds = run({STACK_HOOK: shared_mmdit(crew, case.config, inputs["text"].shape[1])})
    crew.everybody.try_out()  # nobody needs the store any more
    if rank == 0:
        plan = crew.plan
        found = {
            "card": torch.cuda.get_device_name() if gpus else "CPU process",
            "clip": "2.0, 768px, 129 frames" if gpus else "a tiny 2.0, a dry run",
            "link": "NCCL" if gpus else "gloo",
            "plan": f"{plan.rows} x {plan.sequence}" if plan else "",
            "alone": seconds_alone,
            "together": seconds,
            "difference": float((together - alone).abs().max()),
            "largest": float(alone.abs().max()),
        }
        Path(folder, "timed.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--count", type=option.count, choices=(2, 3), help="count with so many processes")
    what.add_argument("--time", type=option.whole, metavar="DEVICES", help="time a step on so many GPUs, 2 or more")
    options = parser.parse_args()
    if options.time is not None:
        try:
            check_devices(options.time)
        except ValueError as error:
            parser.error(f"--time {options.time}: {error}")
    table = timed(options.time) if options.time else lines() if options.count is None else counted(options.count)
    for text in table:
        print(text)


if __name__ == "__main__":
    main()
