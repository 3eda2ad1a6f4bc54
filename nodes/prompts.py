"""Open-Sora's prompt language: scores, camera motion, segments, and requests to a language model."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.native.messages import tell
from ..opensora_models.text import losses, refinement, segments, wording
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
            description="Adds aesthetic score, motion and camera motion in the exact words the model was trained with.",
            search_aliases=["aesthetic score", "motion score", "camera motion", "open-sora prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="Your text, typed or from any text node. Parts of a segmented prompt each get the words.",
                ),
                io.Combo.Input(
                    "version",
                    options=list(wording.WORDINGS),
                    default="1.2",
                    tooltip="1.2 was trained with numbers, 1.3 with words; numbers become words by themselves.",
                ),
                io.String.Input(
                    "aesthetic",
                    default="6.5",
                    tooltip="Picture quality, about 4 to 7, or in 1.3 a word: "
                    f"{', '.join(wording.AESTHETIC_WORDS)}. Empty: not mentioned.",
                ),
                io.String.Input(
                    "motion",
                    default="",
                    tooltip="Amount of motion, about 0 to 20, or in 1.3 a word: "
                    f"{', '.join(wording.MOTION_WORDS)}. Empty: not mentioned.",
                ),
                io.Combo.Input(
                    "camera_motion",
                    options=[NO_CAMERA, *wording.CAMERA_MOTIONS],
                    default=NO_CAMERA,
                    tooltip="What the camera does; off: not mentioned.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The prompt with its added words."),
                *settings_outputs(),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, version: str | None = None, aesthetic: str | None = None, motion: str | None = None
    ) -> bool | str:
        # A linked input arrives here as None; what it brings is checked in execute.
        wording.read_aesthetic(version or "1.3", aesthetic or "")
        wording.read_motion(version or "1.3", motion or "")
        return True

    @classmethod
    def execute(cls, prompt: str, version: str, aesthetic: str, motion: str, camera_motion: str) -> io.NodeOutput:
        scores = wording.read_aesthetic(version, aesthetic), wording.read_motion(version, motion)
        camera = None if camera_motion == NO_CAMERA else camera_motion
        settings = segments.split_settings(refinement.answer(prompt))
        tell(refinement.unanswered(prompt), *losses.missing_parts(settings.text))
        text = segments.each_part(settings.text, lambda part: wording.append_scores(part, version, *scores, camera))
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
        tasks = list(refinement.tasks())
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
