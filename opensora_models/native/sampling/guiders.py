"""Open-Sora guidance for ComfyUI: a GUIDER, and the same rules as a patch on a MODEL.

The GUIDER works with every core sampler through SamplerCustomAdvanced; the patch works wherever a MODEL goes,
KSampler included, where the sampler's own ``cfg`` stays the text scale. Both ask only for rows that count.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from node_helpers import conditioning_set_values
from torch import Tensor

from ...releases.guidance import Guidance
from ...releases.release import GuidanceRules, Use
from ...sampling.guidance import NO_GUIDANCE, Branch, Scales, guided, prompt_and_base, rescale_to_prompt, step_of
from ...sampling.three_rows import scales_of_step
from ...text.segments import texts_of_one_clip
from ...transformer.handing import own
from ..messages import tell
from ..model.base_model import OpenSoraBase, release_of
from ..model.conds import PerFrame
from ..model.written_back import writing_back
from ..text.reaching import check_text

GIVEN_LATENT = "opensora_given_latent"
GIVEN_FRAMES = "opensora_given_frames"
GIVEN_DROP = "opensora_given_drop"
GIVEN_PICTURES = "opensora_given_pictures"
GIVEN_KEYS = (GIVEN_LATENT, GIVEN_FRAMES, GIVEN_PICTURES)
PROCESSED = ("given_latents", "reference")
"""Names under which a MODEL carries the latents it is given in a processed conditioning: 1.3's, and 2.0's, whose first
channel is the mask of the given frames."""
PROCESSED_WITH = (*PROCESSED, "given_mask", "given_frames")
"""All that a processed conditioning says of given frames."""

Conditioning = list[list[Any]]
Rows = Callable[[dict[str, Any]], list[Tensor]]
"""ComfyUI's ``sampler_calc_cond_batch_function``."""


def with_given_frames(
    conditioning: Conditioning, latent: Tensor, frames: Sequence[int], pictures: Sequence[int] = ()
) -> Conditioning:
    """``conditioning`` with given frames: autoencoder latents ``[B, C, T, h, w]`` and their numbers.

    ``pictures`` are those of ``frames`` that were encoded alone and not as part of a clip.
    """
    numbers = {GIVEN_FRAMES: [int(frame) for frame in frames], GIVEN_PICTURES: [int(frame) for frame in pictures]}
    return conditioning_set_values(conditioning, {GIVEN_LATENT: latent, **numbers})


def given_values(conditioning: Conditioning) -> dict[str, Any]:
    """The given-frame entries of the first conditioning that has some."""
    for _, values in conditioning:
        if _gives(values):
            return {key: values[key] for key in GIVEN_KEYS if key in values}
    return {}


def use_of(given: Mapping[str, Any]) -> Use:
    """What a video starts from, by the given-frame entries of its conditioning."""
    if not given:
        return "text"
    return "clip" if set(given[GIVEN_FRAMES]) - set(given.get(GIVEN_PICTURES, ())) else "picture"


def _gives(values: Mapping[str, Any]) -> bool:
    return values.get(GIVEN_LATENT) is not None and bool(values.get(GIVEN_FRAMES))


def _texts(conditioning: Conditioning) -> Conditioning:
    """What a clip is made of; ComfyUI would take the texts of all segments at once."""
    texts, later = texts_of_one_clip(conditioning)
    if later:
        tell(
            f"The prompt changes at segment {' and '.join(map(str, later))} of a long video; this is one clip, made of "
            "the first text alone. Open-Sora Long Video makes them all."
        )
    return texts


def limited_to(guidance: Guidance, model: ModelPatcher, start_percent: float, end_percent: float) -> Guidance:
    """``guidance`` inside a part of the run, counted like ComfyUI's start and end percent."""
    if not 0.0 <= start_percent < end_percent <= 1.0:
        raise ValueError(
            f"Guidance from {start_percent:g} to {end_percent:g} of the run covers nothing; start must lie below end, "
            "the whole run is 0 to 1."
        )
    sampling = model.get_model_object("model_sampling")
    start, end = (float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
    return replace(guidance, sigma_start=min(start, 1.0), sigma_end=end)


class OpenSoraGuider(comfy.samplers.CFGGuider):
    """Text and image guidance of Open-Sora, two or three branches, as many as a step needs."""

    def __init__(self, model: ModelPatcher, guidance: Guidance, schedule: Tensor | None = None) -> None:
        """``schedule`` are the noise levels of the whole run when the sampler gets only a part of them."""
        super().__init__(writing_back(model))
        self.guidance = guidance
        self.rules = rules_of(model)
        self.schedule = None if schedule is None else schedule.tolist()
        self.has_given = False
        self.set_cfg(guidance.text_scale)
        if isinstance(model.model_options.get(ROWS), PatchedRows):
            tell("The settings of Open-Sora Guidance on the MODEL are not used: this sampler has its own.")

    def set_conds(self, positive: Conditioning, negative: Conditioning) -> None:
        """Given frames of the positive conditioning are put into the other rows as well."""
        positive, negative = _texts(positive), _texts(negative)
        check_text(self.model_patcher, positive, negative)
        given = given_values(positive)
        if not given and given_values(negative):
            tell(
                "The negative prompt holds given frames and the prompt does not, so they are not used as they should "
                "be: connect both outputs of the node that placed them."
            )
        self.has_given = bool(given)
        rows = {Branch.PROMPT.value: positive, Branch.NOTHING.value: negative}
        if given:
            image = conditioning_set_values(negative, {**given, "prompt_type": "negative"})
            rows[Branch.IMAGE.value] = image
            rows[Branch.NOTHING.value] = conditioning_set_values(image, {GIVEN_DROP: True})
        self.inner_set_conds(rows)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided denoised latents; ``timestep`` is the noise level ``[B]``."""
        options = model_options or {}
        guidance = faded(self.guidance, self.rules, self.conds[Branch.PROMPT.value])
        scales = scales_at(guidance, x, timestep, options, self.schedule, self.rules)
        if any(_hooks(options).values()):
            return self._by_cores_formula(x, timestep, scales.text, options, seed)
        return guided(
            lambda branches: comfy.samplers.calc_cond_batch(
                self.inner_model, [self.conds[branch.value] for branch in branches], *own((x, timestep)), options
            ),
            x,
            timestep,
            scales,
            has_given=self.has_given,
            flaw_fix=self.guidance.flaw_fix,
        )

    def _by_cores_formula(
        self, x: Tensor, sigma: Tensor, scale: float, options: dict[str, Any], seed: int | None
    ) -> Tensor:
        """The same guidance where other nodes hung something into ComfyUI's formula, which then runs with it."""
        guidance, hooks = self.guidance, _hooks(options)
        if self.has_given and guidance.image_scale is None:
            guidance = replace(guidance, image_scale=guidance.text_scale)
        if guidance.flaw_fix:
            hooks[AFTER] = [fix_flaw, *hooks[AFTER]]
        rows = PatchedRows(guidance, self.schedule, hooks[ROWS], scale, self.rules)
        base = self.conds.get(Branch.IMAGE.value, self.conds[Branch.NOTHING.value])
        return comfy.samplers.sampling_function(
            self.inner_model, x, sigma, base, self.conds[Branch.PROMPT.value], scale,
            {**options, ROWS: rows, AFTER: hooks[AFTER], "disable_cfg1_optimization": self.has_given}, seed,
        )  # fmt: skip


ROWS, BEFORE, FORMULA, AFTER = (
    f"sampler_{name}_function" for name in ("calc_cond_batch", "pre_cfg", "cfg", "post_cfg")
)
"""Where other nodes hang functions into ComfyUI's guidance: keys of ``model_options``."""


def _hooks(options: dict[str, Any]) -> dict[str, Any]:
    """What other nodes hung in; Open-Sora's own patch is left out, since a guider brings its own settings."""
    rows = options.get(ROWS)
    return {
        ROWS: rows.previous if isinstance(rows, PatchedRows) else rows,
        BEFORE: options.get(BEFORE, []),
        FORMULA: options.get(FORMULA),
        AFTER: [function for function in options.get(AFTER, []) if function is not fix_flaw],
    }


def rules_of(model: ModelPatcher) -> GuidanceRules | None:
    """The guidance of a MODEL's release; None for another model."""
    release = release_of(model)
    return None if release is None else release.guidance


def faded(guidance: Guidance, rules: GuidanceRules | None, positive: Sequence[dict[str, Any]]) -> Guidance:
    """``guidance`` for what is given: where a release does not fade the image scale of clips, it stays constant."""
    given = next((entry for entry in positive if _gives(entry)), {})
    if not guidance.fade_image or rules is None or rules.presets["clip"].fade_image or use_of(given) != "clip":
        return guidance
    return replace(guidance, fade_image=False)


def scales_at(
    guidance: Guidance,
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
    schedule: Sequence[float] | None = None,
    rules: GuidanceRules | None = None,
) -> Scales:
    """The scales of the step a model call belongs to, found by its noise level in the run's schedule."""
    if schedule is None:
        levels = options.get("transformer_options", {}).get("sample_sigmas")
        schedule = [float(sigma[0]), 0.0] if levels is None else levels.tolist()
    step, reaches_end = step_of(float(sigma[0]), schedule), rules is None or rules.fade_reaches_end
    return scales_of_step(guidance, step, len(schedule) - 1, float(sigma[0]), x.shape[2], reaches_end=reaches_end)


def patch_guidance(model: ModelPatcher, guidance: Guidance, schedule: Tensor | None = None) -> ModelPatcher:
    """A copy of ``model`` that guides like Open-Sora in any sampler; the sampler's ``cfg`` is the text scale.

    ``image_scale`` None leaves plain two-row guidance even where frames are given.
    """
    patched = writing_back(model).clone()
    hooks = _hooks(model.model_options)
    levels = None if schedule is None else schedule.tolist()
    rows = PatchedRows(guidance, levels, hooks[ROWS], rules=rules_of(model))
    patched.set_model_sampler_calc_cond_batch_function(rows)
    patched.model_options[AFTER] = [*hooks[AFTER], *[fix_flaw] * guidance.flaw_fix]
    if guidance.image_scale is not None:
        # At cfg 1 ComfyUI would withhold the negative prompt, which the image rows need.
        patched.model_options["disable_cfg1_optimization"] = True
    return patched


class PatchedRows:
    """Computes the pair (first, base) that ComfyUI's own CFG formula turns into Open-Sora guidance."""

    def __init__(
        self, guidance: Guidance, schedule: Sequence[float] | None, previous: Rows | None = None,
        text_scale: float | None = None, rules: GuidanceRules | None = None,
    ) -> None:  # fmt: skip
        """``previous`` is another node's function of this kind, which then computes prompt and base row.

        ``text_scale`` is the text scale of this step where it is known, which may save a row; ``rules`` are those of
        the MODEL's release.
        """
        self.guidance = guidance
        self.schedule = schedule
        self.previous = previous
        self.text_scale = text_scale
        self.rules = rules

    def guiding(self, guidance: Guidance) -> PatchedRows:
        """The same with other settings."""
        return PatchedRows(guidance, self.schedule, self.previous, self.text_scale, self.rules)

    def __call__(self, call: dict[str, Any]) -> list[Tensor]:
        """ComfyUI's ``sampler_calc_cond_batch_function``: conditionings [positive, negative] -> two predictions."""
        positive, negative = call["conds"]
        # The text scale belongs to the sampler: 0 stands for "guided", 1 for a step without guidance.
        marked = replace(faded(self.guidance, self.rules, positive), text_scale=0.0)
        scales = scales_at(marked, call["input"], call["sigma"], call["model_options"], self.schedule, self.rules)
        text_off = scales.text == NO_GUIDANCE
        if negative is None or (text_off and all(value == NO_GUIDANCE for value in scales.image)):
            prompt = self._compute(call, positive)[0]
            return [prompt, prompt]
        if self.guidance.image_scale is None or not has_given(positive):
            if text_off:
                prompt = self._compute(call, positive)[0]
                return [prompt, prompt]
            return self._compute(call, positive, negative)
        return self._with_image(call, scales.image, text_off)

    def _with_image(self, call: dict[str, Any], image: tuple[float, ...], text_off: bool) -> list[Tensor]:
        positive, negative = call["conds"]
        rows = {Branch.PROMPT: positive, Branch.IMAGE: _with_given_of(positive, negative)}
        if image == (self.text_scale,):
            return self._compute(call, positive, _without_given(rows[Branch.IMAGE], call["model"]))
        if any(value != NO_GUIDANCE for value in image):
            rows[Branch.NOTHING] = _without_given(rows[Branch.IMAGE], call["model"])
        predicted = dict(zip(rows, self._compute(call, *rows.values()), strict=True))
        first, base = prompt_and_base(predicted, image)
        return [first, first] if text_off else [first, base]

    def _compute(self, call: dict[str, Any], *conds: Any) -> list[Tensor]:
        call = {**call, "input": call["input"].clone(), "sigma": call["sigma"].clone()}
        if self.previous is None:
            return _core_rows({**call, "conds": conds})
        pair, rest = [*conds[:2], None][:2], conds[2:]
        done = self.previous({**call, "conds": pair})[: len(conds)]
        return [*done, *(_core_rows({**call, "conds": rest}) if rest else ())]


def _core_rows(call: dict[str, Any]) -> list[Tensor]:
    return comfy.samplers.calc_cond_batch(
        call["model"], list(call["conds"]), call["input"], call["sigma"], call["model_options"]
    )


def fix_flaw(call: dict[str, Any]) -> Tensor:
    """ComfyUI's ``sampler_post_cfg_function``: the flaw fix, which is left out where frames are given."""
    if has_given(call["cond"]):
        return call["denoised"]
    return rescale_to_prompt(call["input"], call["sigma"], call["denoised"], call["cond_denoised"])


def has_given(conds: list[dict[str, Any]] | None) -> bool:
    """Whether processed conditioning carries given frames."""
    return any(name in entry["model_conds"] for entry in conds or () for name in PROCESSED)


def _with_given_of(positive: list[dict[str, Any]], negative: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Processed negative conditioning with the given frames of the positive one."""
    if has_given(negative):
        return negative
    given = next(entry["model_conds"] for entry in positive if has_given([entry]))
    extra = {name: value for name, value in given.items() if name in PROCESSED_WITH}
    return [_as_another(entry, "given", {**entry["model_conds"], **extra}) for entry in negative]


def _without_given(conds: list[dict[str, Any]], model: OpenSoraBase) -> list[dict[str, Any]]:
    """Processed conditioning whose given latents are zeros; which frames are given stays known where that is the rule.

    See ``empty_row_sees_mask`` of :class:`...releases.release.GivenRules`.
    """
    reference = PROCESSED[1]

    def emptied(model_conds: dict[str, Any]) -> dict[str, Any]:
        zeros = {name: torch.zeros_like(model_conds[name].cond) for name in PROCESSED if name in model_conds}
        if reference in zeros and model.release.given.empty_row_sees_mask:
            zeros[reference][:, :1] = model_conds[reference].cond[:, :1]
        return {**model_conds, **{name: PerFrame(values) for name, values in zeros.items()}}

    return [_as_another(entry, "emptied", emptied(entry["model_conds"])) for entry in conds]


def _as_another(entry: dict[str, Any], change: str, model_conds: dict[str, Any]) -> dict[str, Any]:
    """An entry of processed conditioning with other values, and a name of its own that is the same in every step.

    By these names caches, core's EasyCache among them, keep what they know of a row.
    """
    named = {"uuid": uuid.uuid5(entry["uuid"], change)} if "uuid" in entry else {}
    return {**entry, "model_conds": model_conds, **named}
