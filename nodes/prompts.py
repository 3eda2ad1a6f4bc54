"""Open-Sora's prompt language: scores, camera motion, segments, and requests to a language model."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.messages import tell
from ..opensora_models.native.text.reader import chosen_release
from ..opensora_models.releases.caption_words import read_words
from ..opensora_models.releases.known import RELEASES
from ..opensora_models.text import losses, refinement, segments, suffixes, wording
from .door import OpenSoraNode
from .text import CATEGORY

NO_CAMERA = "off"


def settings_outputs() -> list[io.String.Output]:
    """The settings that prompt files of the original write in braces behind a prompt."""
    return [
        io.String.Output(
            display_name="mask_strategy",
            tooltip='The "mask_strategy" written in braces behind the prompt, as in the original.',
        ),
        io.String.Output(
            display_name="reference_path", tooltip='The "reference_path" written in braces behind the prompt.'
        ),
    ]


class PromptBuilder(OpenSoraNode):
    """``OSoraPromptBuilder``: a prompt in, the same with what training captions say about quality and motion out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraPromptBuilder",
            display_name="Open-Sora Prompt Builder",
            category=CATEGORY,
            description="Adds scores, motion, camera or frame rate in the exact words the model was trained with.",
            search_aliases=["aesthetic score", "motion score", "camera motion", "FPS", "open-sora prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="Your text, typed or from any text node. Parts of a segmented prompt each get the words.",
                ),
                io.Combo.Input(
                    "version",
                    options=list(RELEASES),
                    default="1.2",
                    tooltip="1.2 was trained with numbers, 1.3 with words (numbers become words by themselves), 2.0 "
                    "with frame rate and motion score. Not needed where MODEL is connected.",
                ),
                io.String.Input(
                    "aesthetic",
                    default="6.5",
                    tooltip="Picture quality, about 4 to 7, or in 1.3 a word: "
                    f"{', '.join(wording.AESTHETIC_WORDS)}. Empty: not mentioned. 2.0 knows none.",
                ),
                io.String.Input(
                    "motion",
                    default="",
                    tooltip="Amount of motion, about 0 to 20, or in 1.3 a word: "
                    f"{', '.join(wording.MOTION_WORDS)}. Empty: not mentioned. In 2.0 1 to {suffixes.MOST_MOTION} or "
                    f"{', '.join(suffixes.MOTION_WORDS)}; empty: 4, off: not mentioned.",
                ),
                io.Combo.Input(
                    "camera_motion",
                    options=[NO_CAMERA, *wording.CAMERA_MOTIONS],
                    default=NO_CAMERA,
                    tooltip="What the camera does; off: not mentioned. 2.0 knows no sentence for it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model the prompt is for; it decides about the version.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=suffixes.FRAME_RATE,
                    min=1,
                    max=240,
                    optional=True,
                    advanced=True,
                    tooltip="Open-Sora 2.0 only: frames per second its prompts end in. A prompt that ends in 'FPS.' "
                    "keeps its own.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The prompt with its added words."),
                *settings_outputs(),
            ],
        )

    @classmethod
    def validate_inputs(cls, aesthetic: str | None = None) -> bool | str:
        # ComfyUI marks every input named here, so it is one. What depends on the release, which a linked MODEL tells
        # only later, speaks in execute: no text is encoded before.
        wording.check_aesthetic(aesthetic or "")
        return True

    @classmethod
    def execute(
        cls,
        prompt: str,
        version: str,
        aesthetic: str,
        motion: str,
        camera_motion: str,
        model: Any | None = None,
        frame_rate: float = suffixes.FRAME_RATE,
    ) -> io.NodeOutput:
        camera = None if camera_motion == NO_CAMERA else camera_motion
        words = read_words(chosen_release(model, version), aesthetic, motion, camera, frame_rate)
        settings = segments.split_settings(refinement.answer(prompt))
        tell(refinement.unanswered(prompt), *losses.missing_parts(settings.text))
        tell(*words.left_out, level=logging.INFO)
        text = segments.each_part(settings.text, words.added_to)
        return io.NodeOutput(text, settings.mask_strategy, settings.reference_path)


class PromptSegments(OpenSoraNode):
    """``OSoraPromptSegments``: one line per segment of a long video in, one segmented prompt out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraPromptSegments",
            display_name="Open-Sora Prompt Segments",
            category=CATEGORY,
            description="Writes a prompt that changes over a long video, from one line per segment.",
            search_aliases=["prompt schedule", "long video prompt", "prompt travel"],
            inputs=[
                io.String.Input(
                    "lines",
                    multiline=True,
                    tooltip="First line: segment 0, second line: segment 1 and so on. An empty line keeps the text "
                    "before it. One line alone is an ordinary prompt. Settings in braces may follow.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The prompt in the form '|0| text |2| other text'."),
                *settings_outputs(),
            ],
        )

    @classmethod
    def execute(cls, lines: str) -> io.NodeOutput:
        settings = segments.split_settings(lines)
        text = segments.prompt_from_lines(settings.text)
        return io.NodeOutput(text, settings.mask_strategy, settings.reference_path)


class PromptRequest(OpenSoraNode):
    """``OSoraPromptRequest``: the text to ask a language model for a better prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tasks = list(refinement.tasks()) or [refinement.NO_TASK]
        return io.Schema(
            node_id="OSoraPromptRequest",
            display_name="Open-Sora Prompt Request",
            category=CATEGORY,
            description="Asks a language model to refine or invent a prompt; wire it into core's Generate Text.",
            search_aliases=["prompt enhance", "refine prompt", "random prompt", "LLM"],
            inputs=[
                io.Combo.Input(
                    "task",
                    options=tasks,
                    default=tasks[0],
                    tooltip="refine: make your prompt fuller. invent: a new one, with a new seed a different one. "
                    "continue the picture: for image to video; connect the picture to Generate Text as well.",
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="Your prompt, or wishes, or nothing."),
            ],
            outputs=[io.String.Output(display_name="request", tooltip="For the prompt input of core's Generate Text.")],
        )

    @classmethod
    def execute(cls, task: str, prompt: str) -> io.NodeOutput:
        return io.NodeOutput(refinement.request(task, prompt))
