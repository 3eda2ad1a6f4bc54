"""Whole sampling runs of both versions, every step's latents, through the functions the nodes use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golden.families.stdit3 import FAMILIES, config_of, network_of
from golden.runner import Case, runs_cases
from opensora.opensora_models.releases.guidance import DEFAULT_FORCE_STEPS, Guidance
from opensora.opensora_models.releases.time_shift import shift_for
from opensora.opensora_models.sampling import flow, guidance, masks, noise, references, schedule
from opensora.opensora_models.stdit3.conditions import GivenFrames, kept_tokens

__all__ = ["config_of", "given", "guidance_of", "masked", "sigmas_of"]

# Defaults of the original's scheduler (RFLOW); a case leaves out what it does not change.
CFG_SCALE, STEPS = 4.0, 10


class Rows:
    """The guided model of a case: builds the network's rows for the branches asked for, and counts them."""

    def __init__(self, case: Case, given: flow.GivenFrames | None, mask: flow.FrameMask | None) -> None:
        self.case, self.given, self.mask = case, given, mask
        self.network = network_of(case)
        # The negative prompt has its own tokens; the null text is cut to the prompt's.
        negative = ("y_neg", "mask_neg") if case.input("y_neg") is not None else ("y_null", "mask")
        self.kept = {branch: case.input(negative[1]) for branch in guidance.Branch}
        self.kept[guidance.Branch.PROMPT] = case.input("mask")
        self.texts = dict.fromkeys(guidance.Branch, kept_tokens(case.need(negative[0]), case.input(negative[1])))
        self.texts[guidance.Branch.PROMPT] = kept_tokens(case.need("y"), case.input("mask"))

    def predict(self, x: Tensor, sigma: Tensor, branches: Sequence[guidance.Branch]) -> list[Tensor]:
        """Denoised latents of every branch, computed as one batch of rows."""
        count, size = len(branches), x.shape[0]
        frame_mask = None
        if self.mask is not None:
            frame_mask = masks.active_frames(self.mask.ratios, sigma[0]).reshape(size, -1).repeat(count, 1)
        output = self.network(
            x.repeat(count, 1, 1, 1, 1).to(self.case.dtype),
            (sigma * train_timesteps(self.case)).repeat(count),
            [tokens for branch in branches for tokens in self.texts[branch]],
            fps=self.case.need("fps").repeat(count),
            height=float(self.case.need("height")[0]),
            width=float(self.case.need("width")[0]),
            frame_mask=frame_mask,
            given=self._given(branches),
        ).float()
        velocity = output[:, : x.shape[1]].chunk(count)
        level = sigma.reshape(-1, 1, 1, 1, 1)
        return [x + part * level for part in velocity]

    def _given(self, branches: Sequence[guidance.Branch]) -> GivenFrames | None:
        if self.given is None:
            return None
        frames, null = list(self.given.frames), self.case.input("y_null")
        shown = torch.zeros_like(self.given.latent)
        shown[:, :, frames] = 1.0
        latents = [self.given.latent * (branch is not guidance.Branch.NOTHING) for branch in branches]
        # Given frames see the true null text, whatever the negative prompt is.
        nulls = (
            [row for branch in branches for row in kept_tokens(null, self.kept[branch])] if null is not None else None
        )
        return GivenFrames(torch.cat(latents), shown.repeat(len(branches), 1, 1, 1, 1), frames, nulls)


def train_timesteps(case: Case) -> int:
    """The time of pure noise."""
    return case.info["scheduler"].get("num_timesteps") or schedule.TRAIN_TIMESTEPS


def sample_arguments(case: Case) -> dict[str, Any]:
    """The arguments of the original's ``sample`` that are not None."""
    return {key: value for key, value in (case.info.get("sample_args") or {}).items() if value is not None}


def guidance_of(case: Case) -> Guidance:
    """The case's settings; the image part inherits what it does not set, but not the call's own text scale."""
    settings, extra = case.info["scheduler"], sample_arguments(case)
    inherited = bool(settings.get("use_oscillation_guidance"))
    scale = settings.get("cfg_scale", CFG_SCALE)
    override = case.info.get("guidance_scale")
    return Guidance(
        text_scale=scale if override is None else override,
        image_scale=extra.get("image_cfg_scale", scale),
        oscillate_text=extra.get("use_oscillation_guidance_for_text", inherited),
        oscillate_image=extra.get("use_oscillation_guidance_for_image", inherited),
        force_steps=settings.get("force_num", DEFAULT_FORCE_STEPS),
        fade_image=bool(settings.get("scale_image_weight")),
        initial_image_scale=settings.get("initial_image_scale", 1.0),
        flaw_fix=bool(settings.get("use_flaw_fix")),
    )


def sigmas_of(case: Case, version: str) -> Tensor:
    """The schedule from the size the case announces, which rounds where that size is in bfloat16.

    As in the original, and unlike a run of ours, its first level may lie above 1.
    """
    settings, sizes = case.info["scheduler"], [case.need(name) for name in ("height", "width", "num_frames")]
    discrete = bool(settings.get("use_discrete_timesteps"))
    if discrete and train_timesteps(case) != schedule.TRAIN_TIMESTEPS:
        raise ValueError(f"whole times of {train_timesteps(case)} are not implemented, only of 1000")
    shift, dtype = 1.0, sizes[0].dtype
    if settings.get("use_timestep_transform"):
        shift = shift_for(
            version,
            *(float(size[0]) for size in sizes),
            transform_scale=settings.get("transform_scale", 1.0),
            scale_temporal=settings.get("scale_temporal", True),
            dtype=dtype,
        )
    times = schedule.timesteps(settings.get("num_sampling_steps", STEPS), shift, discrete=discrete, dtype=dtype)
    return torch.cat([times.double() / schedule.TRAIN_TIMESTEPS, torch.zeros(1)]).float()


def reference_latents(case: Case) -> list[list[Tensor]]:
    """Per sample, its reference latents ``[C, t, h, w]`` in order."""
    rows: list[list[Tensor]] = [[] for _ in case.need("z")]
    named = {tuple(map(int, name.split("."))): latent for name, latent in case.with_prefix("in.ref.").items()}
    for (row, _), latent in sorted(named.items(), key=lambda item: item[0]):
        rows[row].append(latent)
    return rows


def masked(case: Case) -> tuple[flow.FrameMask | None, dict[str, Tensor]]:
    """The frame mask, given directly or by strategy text, and the outputs that record it."""
    direct = case.input("frame_mask")
    if direct is not None:
        return flow.FrameMask(direct[:, None, :, None, None], case.need("z")), {}
    if not case.info.get("mask_strategy"):
        return None, {}
    latents, ratios = [], []
    for clip, own, text in zip(case.need("z"), reference_latents(case), case.info["mask_strategy"], strict=True):
        sources = [references.Reference(latent) for latent in own]
        wanted = references.apply_strategy(sources, masks.parse_strategy(text or ""))
        placed = references.lay_out(wanted, clip, segment=case.info.get("loop_i") or 0, align=case.info.get("align"))
        latents.append(placed.latent)
        ratios.append(placed.mask)
    start, mask = torch.stack(latents), torch.stack(ratios)
    return flow.FrameMask(mask[:, None, :, None, None], start), {"z_init": start, "frame_mask": mask}


def given(case: Case) -> tuple[flow.GivenFrames | None, dict[str, Tensor]]:
    """The given frames of the case's condition type, and the outputs that record them; none without a type."""
    if "cond_type" not in case.info:
        return None, {}
    z, kind = case.need("z"), case.info["cond_type"]
    shown, ratios = torch.zeros_like(z), torch.ones(z.shape[2])
    for latent, own in zip(shown, reference_latents(case), strict=True):
        lengths = [reference.shape[1] for reference in own]
        most, close = case.info.get("condition_frame_length", 5), case.info.get("loop", 1) <= 1
        spans = references.given_spans(kind, lengths, z.shape[2], most, close=close)
        masks.write_spans(latent, ratios, own, spans)
    frames = tuple(index for index, ratio in enumerate(ratios.tolist()) if ratio == masks.KEPT)
    if list(frames) != case.info.get("mask_index", list(frames)):
        raise ValueError(f"given frames {frames} instead of {case.info['mask_index']}")
    outputs = {"z_cond": shown, "z_cond_mask_frames": 1.0 - ratios}
    return flow.GivenFrames(shown, frames) if frames else None, outputs


@runs_cases(lambda case: case.kind == "sampler", *FAMILIES)
def run(case: Case) -> dict[str, Tensor]:
    """The run's timesteps, scales, masks and latents."""
    settings, levels = guidance_of(case), sigmas_of(case, case.family.removeprefix("stdit3-v"))
    mask, mask_outputs = masked(case)
    frames, given_outputs = given(case)
    rows = Rows(case, frames, mask)
    steps, clip_length = len(levels) - 1, case.need("z").shape[2]
    scales: list[guidance.Scales] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scales.append(guidance.step_scales(settings, len(scales), steps, float(sigma[0]), clip_length))
        return guidance.guided(
            lambda branches: rows.predict(x, sigma, branches),
            x,
            sigma,
            scales[-1],
            has_given=frames is not None,
            flaw_fix=settings.flaw_fix,
        )

    recorded = case.input("noise")
    walk = flow.rectified_flow(
        denoise,
        case.need("z"),
        levels,
        noise=noise.RecordedNoise(recorded if recorded is not None else torch.zeros(0)),
        mask=mask,
        renoise=frames if sample_arguments(case).get("use_sdedit") else None,
    )
    done = list(walk)
    outputs = {**mask_outputs, **given_outputs, **step_outputs(done, scales, clip_length)}
    return outputs | {"timesteps": outputs["timesteps"] * train_timesteps(case)}


def step_outputs(done: list[flow.Step], scales: list[guidance.Scales], clip_length: int) -> dict[str, Any]:
    """What the case records of every step; ``timesteps`` are noise levels."""
    samples = done[0].x.shape[0]
    outputs = {
        "timesteps": torch.stack([step.sigma.expand(samples) for step in done]),
        "z_in": torch.stack([step.x for step in done]),
        "z_steps": torch.stack([step.after for step in done]),
        "z_final": done[-1].after,
        "text_gs": torch.tensor([each.text for each in scales]),
        "image_gs": torch.tensor([each.image * (clip_length // len(each.image)) for each in scales]),
    }
    if done[0].active is not None:
        outputs["x_mask"] = torch.stack([step.active.reshape(samples, -1) for step in done])
    return outputs
