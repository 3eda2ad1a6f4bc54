"""Files of ours that are dropped on ComfyUI's page bring their graph back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from opensora.opensora_models.vae.latent_file import save_latent
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]

WORDS = 'a lamp } that { {blinks} \\ "twice" \N{SNOWMAN}'
KINDS = {".mp4": "video/mp4", ".webm": "video/webm", ".latent": ""}


def test_videos_and_latents_open_the_graph_that_made_them(each_page: Page, tmp_path: Path) -> None:
    node = {
        "id": 1, "type": "PrimitiveStringMultiline", "pos": [40, 60], "size": [400, 200], "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": [{"name": "STRING", "type": "STRING", "links": None}],
        "properties": {"Node name for S&R": "PrimitiveStringMultiline"}, "widgets_values": [WORDS],
    }  # fmt: skip
    graph = {"last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [], "config": {},
             "extra": {}, "version": 0.4}  # fmt: skip
    paths = [tmp_path / f"clip{ending}" for ending in KINDS]
    for path in paths:
        kinds = [kind for kind in FORMATS.values() if kind.ending == path.suffix]
        if kinds:
            video = GroupedVideo(tmp_path / f"parts{path.suffix}", kinds[0], exact_rate(24), 18)
            video.write(0, torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(1)))
            video.join(1, path, {"workflow": graph})
        else:
            save_latent(path, torch.zeros(1, 4, 1, 2, 2), {}, {"workflow": graph})
    files = [
        {"name": path.name, "type": KINDS[path.suffix], "content": base64.b64encode(path.read_bytes()).decode()}
        for path in paths
    ]
    visit = each_page.browser.visit("drop", files=files)
    assert visit.value == {path.name: [["PrimitiveStringMultiline", [WORDS]]] for path in paths}
    assert visit.errors == []
