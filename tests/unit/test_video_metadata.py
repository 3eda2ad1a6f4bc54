"""A video brings its graph back when it is dropped on the page, whatever stands in the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate
from support.page_metadata import dropped

WORDS = ("a dog {running} by the sea", "{", "}", "}{", '{{{ \\" {', 'quote " and } brace', "\u96ea {\u2603", "\0{")


def written(folder: Path, form: str, metadata: dict[str, Any], frames: int = 6) -> Path:
    kind = FORMATS[form]
    noise = torch.rand(frames, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    video = GroupedVideo(folder / "parts", kind, exact_rate(24), 18)
    video.write(0, noise)
    target = folder / f"clip{kind.ending}"
    video.join(1, target, metadata)
    return target


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("words", WORDS)
def test_the_page_finds_prompt_and_workflow(form: str, words: str, tmp_path: Path) -> None:
    graph = {"6": {"class_type": "OSoraTextEncode", "inputs": {"text": words, "clip": ["1", 0]}}}
    page = {"nodes": [{"id": 6, "widgets_values": [words, None, float("inf")]}], "links": [], "extra": {}}
    path = written(tmp_path, form, {"workflow": page, "prompt": graph})
    assert dropped(path) == {"workflow": page, "prompt": graph}
    with av.open(str(path)) as file:  # as ComfyUI's own nodes read it
        texts = {name.lower(): text for name, text in file.metadata.items()}
    assert json.loads(texts["prompt"]) == graph and json.loads(texts["workflow"]) == page


@pytest.mark.parametrize("form", FORMATS)
def test_a_long_video_has_its_graph_at_the_beginning(form: str, tmp_path: Path) -> None:
    """The page reads no more than the first two (WebM) or 64 megabytes."""
    page = {"nodes": [{"id": n, "widgets_values": ["x" * 100]} for n in range(2000)]}
    path = written(tmp_path, form, {"workflow": page}, frames=60)
    assert dropped(path) == {"workflow": page}
    assert path.read_bytes().index(b"widgets_values") < 2**15
