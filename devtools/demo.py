"""``dev.py demo``: the tiny models, a headless ComfyUI, workflows of two releases queued, videos and a picture."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .client import Prompt, PromptFailed, PromptRefused
from .console import Problem, Progress, say
from .places import BASE, HOME, REPOSITORY
from .runtime import Runtime
from .server import ComfyServer

WORKFLOWS = REPOSITORY / "workflows" / "api"
SHOWN = {
    "Open-Sora 1.3": ("Open-Sora 01 Text to video", "Open-Sora 02 Image to video"),
    "Open-Sora 2.0": ("Open-Sora 70 Text to video in 2.0", "Open-Sora 71 Image to video in 2.0"),
}
"""Workflows by the title above their videos; the first of each takes the person's words."""
SHEET_SCRIPT = REPOSITORY / "demo" / "contact_sheet.py"
SHEET = "opensora-demo.png"
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv")


def model_paths_file(models: Path) -> Path:
    """Write ComfyUI's extra-model-paths file (JSON is YAML) for a models folder, and give its path."""
    content = {"comfyui": {kind.name: str(kind) for kind in sorted(models.iterdir()) if kind.is_dir()}}
    file = BASE / "model_paths.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return file


def make_server(runtime: Runtime, port: int | None = None, arguments: list[str] | None = None) -> ComfyServer:
    """The server of ``serve`` and ``demo``: the pack shows it the tiny models; those of a ComfyUI named by the person
    are listed too."""
    paths: list[str] = []
    models = runtime.root / "models"
    if (not runtime.own or runtime.root.parent != HOME) and models.is_dir():
        paths = ["--extra-model-paths-config", str(model_paths_file(models))]
    extra = [*paths, *runtime.device_arguments(), *(arguments or [])]
    return ComfyServer(runtime.python, runtime.root, BASE, REPOSITORY, port=port, arguments=extra)


def with_prompt(workflow: Prompt, text: str) -> Prompt:
    """The workflow with its positive prompt replaced: the text found by walking back from an input ``positive``."""
    changed = copy.deepcopy(workflow)
    for node in workflow.values():
        link = node["inputs"].get("positive")
        while isinstance(link, list):
            inputs = changed[link[0]]["inputs"]
            for name in ("text", "prompt"):
                if isinstance(inputs.get(name), str):
                    inputs[name] = text
                    return changed
            links = [inputs.get(name) for name in ("positive", "conditioning", "text", "prompt")]
            link = next((value for value in links if isinstance(value, list)), None)
    raise Problem("The demo workflow has no positive prompt that could be replaced.")


def run_demo(runtime: Runtime, text: str | None) -> None:
    """Text to video, then image to video, each release beside the other; say where the videos and their picture are."""
    prompts = {name: workflow_of(name) for job in zip(*SHOWN.values(), strict=True) for name in job}
    if text is not None:
        prompts |= {first: with_prompt(prompts[first], text) for first, *_ in SHOWN.values()}
    server = make_server(runtime)
    say(f"Starting ComfyUI {runtime.version}")
    with server:
        say(f"ComfyUI is ready after {server.seconds_to_ready:.1f} s")
        videos = [video for name, prompt in prompts.items() for video in videos_of(server, name, prompt)]
    sheet = BASE / "output" / SHEET
    draw_sheet(runtime, sheet, list(SHOWN), videos)
    for path in (*videos, sheet):
        say(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


def draw_sheet(runtime: Runtime, sheet: Path, titles: Sequence[str], videos: Sequence[Path]) -> None:
    """One picture of videos, the first below the first title and so on."""
    columns = [f"--title={title}" for title in titles]
    done = subprocess.run(
        [str(runtime.python), str(SHEET_SCRIPT), str(sheet), *columns, *map(str, videos)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Problem(f"The videos are made, but {SHEET_SCRIPT.name} failed:\n{done.stderr[-3000:]}")


def workflow_of(name: str) -> Prompt:
    """The API form of a template."""
    prompt: Prompt = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    return prompt


def videos_of(server: ComfyServer, name: str, prompt: Prompt) -> list[Path]:
    """Run one workflow; the video files it left."""
    bar = _Bar(prompt, name)
    try:
        run = server.watch(prompt, bar.listen)
    except PromptRefused as error:
        raise Problem(f"ComfyUI refused the workflow {name}: {error}") from None
    except PromptFailed as error:
        raise Problem(f"The workflow {name} failed: {error}\nThe log is {server.log_path}") from None
    bar.progress.finish()
    files = [item for item in run.files() if item["filename"].endswith(VIDEO_ENDINGS)]
    if not files:
        raise Problem(f"The workflow {name} gave no video; it gave {run.outputs}.")
    return [BASE / item["type"] / item["subfolder"] / item["filename"] for item in files]


class _Bar:
    """Turns ComfyUI's progress events into one bar over all nodes of the prompt."""

    def __init__(self, prompt: Prompt, label: str) -> None:
        self.progress = Progress(f"Running {label}")
        self._prompt = prompt

    def listen(self, event: str, data: dict[str, Any]) -> None:
        if event != "progress_state":
            return
        nodes = data["nodes"]
        done = sum(node["value"] / node["max"] if node["max"] else 0.0 for node in nodes.values())
        running = [key for key, node in nodes.items() if node["state"] == "running"]
        titles = [self._prompt[key]["class_type"] for key in running if key in self._prompt]
        self.progress.update(done, len(self._prompt), ", ".join(titles))
