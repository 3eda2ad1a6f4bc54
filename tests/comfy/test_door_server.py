"""Text that cannot be printed, limits by wire and late mistakes, in the real server, which goes on afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.graphs import Prompt, complete, node
from support.server import PromptFailed, PromptRefused

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server

HALF = "|0|a|\ud800|b"


def shown(prompt: Prompt, name: str, output: int = 0) -> Prompt:
    """The prompt with an output node behind one of its nodes."""
    return {**prompt, "shown": node("PreviewAny", source=[name, output])}


def text(prompt: str) -> Prompt:
    return {
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt=prompt, negative_prompt="x"),
    }


SPOILED: dict[str, Prompt] = {
    "a prompt": shown(text(HALF), "text", 2),
    "a prompt by wire": shown(
        {**text("x"), "words": node("PrimitiveString", value=HALF),
         "text": node("OSoraTextEncode", clip=["clip", 0], prompt=["words", 0], negative_prompt="x")}, "text", 2,
    ),
    "lines": shown({"lines": node("OSoraPromptSegments", lines="a\n\ud800|")}, "lines"),
    "a score": shown({"build": node("OSoraPromptBuilder", prompt="x", aesthetic="\udfff")}, "build"),
    "a request": shown({"ask": node("OSoraPromptRequest", prompt=HALF)}, "ask"),
    "a prefix": {**text("x"), "save": node("OSoraSaveConditioning", positive=["text", 0], negative=["text", 1],
                                           filename_prefix="a\udcff")},
    "a strategy": shown({
        "empty": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=1),
        "vae": node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors"),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "chain": node("OSoraReference", vae=["vae", 0], clip_latent=["empty", 0], image=["picture", 0]),
        "place": node("OSoraPlaceReferences", references=["chain", 0], latent=["empty", 0], mask_strategy="0,\ud800"),
    }, "place", 3),
    "a file": shown({"load": node("OSoraLoadLatent", file="x\udcff.latent")}, "load"),
}  # fmt: skip


@pytest.mark.parametrize("where", list(SPOILED))
def test_half_a_character_stops_one_prompt_and_not_the_server(
    server: TestServer, object_info: dict[str, Any], where: str
) -> None:
    error = server.failure(complete(SPOILED[where], object_info))
    assert isinstance(error, (PromptFailed, PromptRefused))
    assert server.run(complete(shown(text("a wave"), "text", 2), object_info))["shown"]["text"]


def test_a_linked_number_beyond_its_limit_is_refused_at_once(server: TestServer, object_info: dict[str, Any]) -> None:
    for number, good in ((10**6, "64"), (0, "1"), (-1, "1"), (2**40, "64")):
        clip = node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=["n", 0])
        prompt = shown({"n": node("PrimitiveInt", value=number), "empty": clip}, "empty")
        error = str(server.failure(complete(prompt, object_info)))
        assert f"batch_size is {number}" in error and f"the nearest good value is {good}" in error


def test_prompts_that_cannot_be_read_are_refused_before_the_text_encoder_is_loaded(
    server: TestServer, object_info: dict[str, Any]
) -> None:
    for words, negative, said in (("|0| a |x| b", "x", "segment number"), ("a", "", "connect MODEL")):
        prompt = {**text(words), "words": node("PrimitiveString", value=words)}
        prompt["text"]["inputs"] |= {"prompt": ["words", 0], "negative_prompt": negative}
        error = server.failure(complete(shown(prompt, "text", 2), object_info))
        assert isinstance(error, PromptFailed) and said in str(error)
        assert "clip" not in error.executed


def test_a_wrong_latent_is_refused_before_the_text_encoder_is_loaded(
    server: TestServer, object_info: dict[str, Any]
) -> None:
    prompt = {
        **text("a wave"),
        "model": node("OSoraModelLoader", model_name="random-v1.2.safetensors"),
        "vae": node("OSoraVAELoader", vae_name="random-vae-v1.3.safetensors"),
        "picture": node("EmptyImage", width=64, height=64, batch_size=17, color=0x808080),
        "clip_13": node("OSoraEncode", images=["picture", 0], vae=["vae", 0]),
        "sampler": node("OSoraSampler", model=["model", 0], positive=["text", 0], negative=["text", 1],
                        latent=["clip_13", 0], steps=1),
        "shown": node("PreviewAny", source=["sampler", 0]),
    }  # fmt: skip
    error = server.failure(complete(prompt, object_info))
    assert isinstance(error, PromptFailed)
    assert "16 channels but the model is Open-Sora 1.2" in str(error)
    assert "text" not in error.executed and "clip" not in error.executed
