"""File names in the real server: strange ones are listed and load, and new ones are what the page promises."""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opensora.opensora_models.text.conditioning_file import save_conditioning
from support.graphs import Prompt, complete, node

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server, pytest.mark.compat]

ENDING = ".conditioning.safetensors"


def test_names_that_are_not_utf8_among_dead_links(server: TestServer) -> None:
    """The page gets the list as JSON, and the choice comes back as JSON."""
    folder, strange = server.base / "output" / "strange", os.fsdecode(b"caf\xe9")
    folder.mkdir()
    part = [[torch.zeros(1, 2, 4), {}]]
    try:
        save_conditioning(folder / f"x{ENDING}", {"positive": part, "negative": part})
        (folder / f"x{ENDING}").rename(folder / f"{strange}{ENDING}")
        (folder / f"dead{ENDING}").symlink_to(folder / "nothing")
        (folder / "loop").symlink_to(folder)
    except OSError:
        pytest.skip("this file system knows no such names or links")
    (_, menu) = server.object_info("OSoraLoadConditioning")["OSoraLoadConditioning"]["input"]["required"]["file"]
    name = f"strange/{strange}{ENDING} [output]"
    assert [each for each in menu["options"] if each.startswith("strange")] == [name]
    prompt = {"load": node("OSoraLoadConditioning", file=name), "end": node("PreviewAny", source=["load", 0])}
    assert server.run(prompt)["end"]["text"]
    (folder / f"{strange}{ENDING}").unlink()
    prompt["end"]["inputs"]["source"] = ["load", 1]
    assert "is not among the saved conditionings" in str(server.failure(prompt))


def test_placeholders_from_a_program(server: TestServer, object_info: dict[str, Any]) -> None:
    prompt: Prompt = {
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="x", negative_prompt="y"),
        "save": node("OSoraSaveConditioning", positive=["text", 0], negative=["text", 1],
                     filename_prefix="by program/%date:yyyy-MM-dd%_%OSoraTextEncode.prompt%"),
        "end": node("PreviewAny", source=["save", 0]),
    }  # fmt: skip
    (told,) = server.run(complete(prompt, object_info))["end"]["text"]
    assert told == f"by program/{datetime.date.today().isoformat()}_x_00001_{ENDING} [output]"
    assert (server.base / "output" / told.removesuffix(" [output]")).is_file()
