"""Where the time of a ``dev.py demo`` clip goes: start, loading, text, sampling, decoding, file, ComfyUI around them.

    python benchmarks/demo_clip.py
    python benchmarks/demo_clip.py --template "Open-Sora 44 Step cache"

A real headless ComfyUI runs the template three times: first (cold: models are loaded), with another seed (warm), and
with the plain decode node in place of the one that writes a file, which parts decoding from the file. Seconds of one
machine say little; the shares say where to look.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
from support.comfyui import use_comfyui  # noqa: E402
from support.pack import PACK_ROOT, load_pack  # noqa: E402

use_comfyui()
load_pack()
from opensora.devtools import option_types as option  # noqa: E402
from opensora.devtools.client import Prompt  # noqa: E402
from support.server import TestServer  # noqa: E402

TO_FILE, TO_IMAGES = "OSoraDecodeToVideo", "OSoraDecode"
PARTS = {
    "OSoraModelLoader": "loading", "OSoraTextEncoderLoader": "loading", "OSoraVAELoader": "loading",
    "OSoraTextEncode": "text", "OSoraSampler": "sampling", TO_FILE: "decoding and file", TO_IMAGES: "decoding",
    "OSoraCalibrateStepCache": "calibration",
}  # fmt: skip
AROUND = "ComfyUI around the nodes"


def timed(server: TestServer, prompt: Prompt) -> dict[str, float]:
    """Seconds of each part of a run, from asking to the last event; other nodes are called by their class."""
    spent: dict[str, float] = defaultdict(float)
    start = last = time.perf_counter()
    running = AROUND

    def listen(event: str, data: Mapping[str, Any]) -> None:
        nonlocal last, running
        if event == "executing":
            now = time.perf_counter()
            spent[running] += now - last
            node = data.get("node")
            kind = prompt[node]["class_type"] if node else ""
            last, running = now, PARTS.get(kind, kind) or AROUND

    server.watch(prompt, listen)
    spent[running] += time.perf_counter() - last
    spent["the whole"] = time.perf_counter() - start
    return dict(spent)


def seeded(prompt: Prompt, seed: int) -> Prompt:
    """The graph with another seed in every node that has one."""
    changed = json.loads(json.dumps(prompt))
    for node in changed.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return dict(changed)


def decoding_only(prompt: Prompt) -> Prompt:
    """The graph with the plain decode node, whose frames are looked at by nobody but one cheap node."""
    changed = json.loads(json.dumps(prompt))
    ((key, node),) = [(key, node) for key, node in changed.items() if node["class_type"] == TO_FILE]
    kept = {name: node["inputs"][name] for name in ("samples", "vae", "tile_size", "filename_prefix", "num_frames")}
    changed[key] = {"class_type": TO_IMAGES, "inputs": {**kept, "save_latent": True}}
    changed["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [key, 0]}}
    return dict(changed)


def table(cold: Mapping[str, float], warm: Mapping[str, float], decoding: float) -> list[str]:
    """Markdown: a row a part, the largest of a warm run first."""

    def split(spent: Mapping[str, float]) -> dict[str, float]:
        both = spent.get("decoding and file", 0.0)
        rest = {name: seconds for name, seconds in spent.items() if name != "decoding and file"}
        return {**rest, "decoding": min(decoding, both), "file": max(both - decoding, 0.0)}

    first, later = split(cold), split(warm)
    lines = ["| part | first run, s | later run, s | share of a later run |", "| --- | --- | --- | --- |"]
    for name in sorted({*first, *later}, key=lambda name: later.get(name, 0.0), reverse=True):
        seconds = later.get(name, 0.0)
        lines.append(f"| {name} | {first.get(name, 0.0):.2f} | {seconds:.2f} | {seconds / warm['the whole']:.0%} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=option.text, default="Open-Sora 01 Text to video")
    options = parser.parse_args(arguments)
    path = PACK_ROOT / "workflows" / "api" / f"{options.template}.json"
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [each.stem for each in path.parent.glob("*.json")])
        there = f"near are {near}" if near else f"their names are those of the files in {path.parent}"
        parser.error(f"argument --template: there is no '{options.template}'; {there}")
    prompt = json.loads(path.read_text(encoding="utf-8"))
    with (
        tempfile.TemporaryDirectory() as folder,
        TestServer(Path(folder), PACK_ROOT / "demo" / "models") as server,
    ):
        cold, warm = timed(server, seeded(prompt, 1)), timed(server, seeded(prompt, 2))
        decoding = timed(server, decoding_only(seeded(prompt, 2)))["decoding"]
        lines = [f"ComfyUI starts in {server.seconds_to_ready:.1f} s", "", *table(cold, warm, decoding)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
