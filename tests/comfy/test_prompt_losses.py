"""What a prompt loses on its way to the encoder is said on the node, in its report and in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from support.good_inputs import GoodInputs

if TYPE_CHECKING:
    from pathlib import Path

    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy]


@pytest.fixture(scope="module")
def good(executor: Executor) -> GoodInputs:
    return GoodInputs(executor)


@pytest.fixture
def shown(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands under the node, the last text last."""
    from opensora.opensora_models.native import messages

    texts: list[str] = []
    monkeypatch.setattr(messages, "show_on_node", lambda node_id, text: texts.append(text))
    return texts


def report_of(good: GoodInputs, prompt: str, negative: str = "blurry", clean: bool = True) -> str:
    from opensora.nodes.text import TextEncode

    values = {**good.for_node(TextEncode), "prompt": prompt, "negative_prompt": negative, "clean": clean}
    return TextEncode.execute(**values).result[2]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("一只可爱的猫", ["The prompt: no words are left of “一只可爱的猫”", "translate", "Generate Text"]),
        ("かわいい猫", ["“猫”", "does not know letters of “かわいい”", "translate"]),
        ("고양이 한 마리", ["does not know letters of “고양이”", "“마리”"]),
        ("Кошка😀", ["does not know"]),
        ("a cat 猫", ["took away or cut “猫”"]),
        ("", ["The prompt: there is no text"]),
        (" \n ", ["there is no text"]),
        ("photo.png", ["no words are left"]),
        ("worshipping at https://x.com/a", ["“worshipping”", "“https://x.com/a”"]),
        ('a cat{"mask_strategy": "0", "reference_path": "a.png"}', ["settings in braces", "Prompt Builder"]),
        ("|0|a cat|2|猫|5|", ["The prompt of segment 2: no words", "The prompt of segment 5: there is no text"]),
        ("a (red cat:1.5) runs", ["knows no weights", "“(red cat:1.5)”"]),
        ("a cat, embedding:easy", ["knows no embeddings", "“embedding:easy”"]),
        ("word " * 400, ["The prompt: the text is", "longer than the 300"]),
    ],
)
@pytest.mark.parametrize("negative", [False, True])
def test_losses_are_told_everywhere(
    good: GoodInputs, shown: list[str], caplog: pytest.LogCaptureFixture, prompt: str, words: list[str], negative: bool
) -> None:
    if negative and not prompt.strip():
        pytest.skip("an empty negative prompt means the learned text")
    with caplog.at_level(logging.WARNING, logger="opensora"):
        report = report_of(good, "a cat", prompt) if negative else report_of(good, prompt)
    for word in words:
        word = word.replace("The prompt", "The negative prompt") if negative else word
        assert word in report and word in shown[-1] and word in caplog.text, word


@pytest.mark.parametrize("clean", [True, False])
def test_an_ordinary_prompt_says_nothing(good: GoodInputs, shown: list[str], clean: bool) -> None:
    report = report_of(good, "A Cat, (very cute): it's “4k”! |0| e.g. café", "", clean)
    assert len(report.splitlines()) == 1 and shown == []
    assert len(report_of(good, "|0|a cat|2|a dog").splitlines()) == 3


def test_uncleaned_text_loses_no_words(good: GoodInputs, shown: list[str]) -> None:
    report_of(good, "worshipping <b>https://x.com</b>", clean=False)
    assert shown == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "The prompt: there is no text; the model gets no words but those added here."),
        ('{"mask_strategy": "0"}', "there is no text"),
        ("|0|a|2||3|b", "The prompt of segment 2: there is no text"),
        ("<think>hm, a cat", "reasoning without an answer"),
        ("<think>hm</think> a cat", ""),
    ],
)
def test_words_added_to_nothing_are_told(comfy: Path, shown: list[str], prompt: str, said: str) -> None:
    from opensora.nodes.prompts import PromptBuilder

    PromptBuilder.execute(prompt, version="1.2", aesthetic="6.5", motion="", camera_motion="off")
    assert said in shown[-1] if said else shown == []


def test_settings_are_taken_off_by_both_prompt_nodes(comfy: Path) -> None:
    from opensora.nodes.prompts import PromptBuilder, PromptSegments

    words = {"version": "1.2", "aesthetic": "", "motion": "", "camera_motion": "off"}
    settings = '{"mask_strategy": "0,0,0,0,16",\n "reference_path": null}'
    for written, prompt in (("a cat", "a cat"), ("|0|a|1| b", "|0|a|1|b"), ("|0| a\n|2| b\n", "|0|a|2|b")):
        assert PromptBuilder.execute(f"{written}{settings}", **words).result[0].strip() == prompt
        assert PromptSegments.execute(f"{written}{settings}").result == (prompt, "0,0,0,0,16", "")
    assert PromptSegments.execute(f"a\n\nb\n{settings}").result[0] == "|0|a|2|b"


@pytest.fixture(scope="module")
def for_2_0(good: GoodInputs, executor: Executor) -> dict[str, object]:
    """What Text Encode is given with the tiny 2.0."""

    def node(kind: str, **inputs: object) -> dict[str, object]:
        return {"class_type": kind, "inputs": inputs}

    model, clip = executor.run(
        {
            "model": node("OSoraModelLoader", model_name="random-v2.0.safetensors", weight_dtype="default",
                          rounding="accurate", window=0, spatial_rotary="automatic"),
            "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                         device="default", clip_l_name="random-clip-l.safetensors"),
        },
        ("model", 0), ("clip", 0),
    )  # fmt: skip
    return {"model": model, "clip": clip, "clean": True}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("かわいい猫", ["does not know letters of “かわいい猫”", "translate"]),
        ("a cat 猫", ["does not know letters of “猫”"]),
        ("", ["The prompt: there is no text"]),
        ('a cat{"mask_strategy": "0", "reference_path": "a.png"}', ["settings in braces", "Prompt Builder"]),
        ("|0|a cat|2|猫|5|", ["The prompt of segment 2: ", "The prompt of segment 5: there is no text"]),
        ("word " * 900, ["The prompt: the text is", "longer than the 512"]),
        ("worshipping <b>https://x.com</b> photo.png 一", ["does not know letters of “一”"]),
    ],
)
@pytest.mark.parametrize("negative", [False, True])
def test_losses_of_2_0_are_told_everywhere(
    for_2_0: dict[str, object],
    shown: list[str],
    caplog: pytest.LogCaptureFixture,
    prompt: str,
    words: list[str],
    negative: bool,
) -> None:
    from opensora.nodes.text import TextEncode

    if negative and not prompt:
        words = []  # an ordinary text to stay away from
    texts = ("a cat. 24 FPS.", prompt) if negative else (prompt, "")
    with caplog.at_level(logging.WARNING, logger="opensora"):
        report = TextEncode.execute(**for_2_0, prompt=texts[0], negative_prompt=texts[1]).result[2]
    for word in words:
        word = word.replace("The prompt", "The negative prompt") if negative else word
        assert word in report and word in shown[-1] and word in caplog.text, word
    assert words or not caplog.messages
    assert "cleaning" not in report


@pytest.mark.parametrize(
    "prompt",
    ["a train (5:30) leaves", "from noon (12:00 to 5:30) on", "a picture (16:9)", "a cat (black) and (white)",
     "a sermon (John 3:16)", "a list (see: the dog)", "((a cat))"],
)  # fmt: skip
def test_ordinary_brackets_are_no_weights(prompt: str) -> None:
    from opensora.opensora_models.text.losses import literal

    assert literal(prompt) == []
