"""Whole sampling runs of both versions, every step's latents, through the functions the nodes use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, fill_by_rule, runs_cases
from opensora.opensora_models.sampling import flow, guidance, masks, noise, references, schedule
from opensora.opensora_models.stdit3.conditions import GivenFrames
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.keys import to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3


class Rows:
    """The guided model of a case: builds the network's rows for the branches asked for, and counts them."""

    def __init__(self, case: Case, given: flow.GivenFrames | None, mask: flow.FrameMask | None) -> None:
        self.case, self.given, self.mask = case, given, mask
        self.network = STDiT3(config_of(case)).eval()
        fill_by_rule(self.network, case, to_checkpoint_key)
        self.texts = {
            guidance.Branch.PROMPT: kept_tokens(case, "y", "mask"),
            guidance.Branch.NOTHING: self._negative(),
        }
        self.texts[guidance.Branch.IMAGE] = self.texts[guidance.Branch.NOTHING]

    def _negative(self) -> list[Tensor]:
        """The negative prompt with its own tokens, or the null text cut to the prompt's tokens."""
        if self.case.input("y_neg") is not None:
            return kept_tokens(self.case, "y_neg", "mask_neg")
        return kept_tokens(self.case, "y_null", "mask")

    def predict(self, x: Tensor, sigma: Tensor, branches: Sequence[guidance.Branch]) -> list[Tensor]:
        """Denoised latents of every branch, computed as one batch of rows."""
        count, size = len(branches), x.shape[0]
        text = [tokens for branch in branches for tokens in self.texts[branch]]
        frame_mask = None
        if self.mask is not None:
            frame_mask = masks.active_frames(self.mask.ratios, sigma[0]).reshape(size, -1).repeat(count, 1)
        output = self.network(
            x.repeat(count, 1, 1, 1, 1),
            (sigma * schedule.TRAIN_TIMESTEPS).repeat(count),
            text,
            fps=self.case.input("fps").repeat(count),
            height=float(self.case.input("height")[0]),
            width=float(self.case.input("width")[0]),
            frame_mask=frame_mask,
            given=self._given(branches, size),
        )
        velocity = output[:, : x.shape[1]].chunk(count)
        level = sigma.reshape(-1, 1, 1, 1, 1)
        return [x + part * level for part in velocity]

    def _given(self, branches: Sequence[guidance.Branch], size: int) -> GivenFrames | None:
        if self.given is None:
            return None
        frames = list(self.given.frames)
        shown = torch.zeros_like(self.given.latent)
        shown[:, :, frames] = 1.0
        latents = [self.given.latent * (branch is not guidance.Branch.NOTHING) for branch in branches]
        return GivenFrames(torch.cat(latents), shown.repeat(len(branches), 1, 1, 1, 1), frames)


def config_of(case: Case) -> STDiT3Config:
    """The network's numbers; settings of the original that do not matter for inference are left out."""
    known = STDiT3Config.__dataclass_fields__
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in case.config.items() if key in known}
    return STDiT3Config(version=case.family.removeprefix("stdit3-v"), **settings)


def kept_tokens(case: Case, text: str, mask: str) -> list[Tensor]:
    """Per sample, the text states ``[L, C]`` that the mask keeps."""
    states, kept = case.input(text), case.input(mask)
    return [row[0][keep.bool()] for row, keep in zip(states, kept, strict=True)]


def guidance_of(case: Case) -> guidance.Guidance:
    """The case's settings; the image part inherits what it does not set."""
    settings, extra = case.info["scheduler"], case.info.get("sample_args", {})
    inherited = settings.get("use_oscillation_guidance", False)
    override = case.info.get("guidance_scale")
    return guidance.Guidance(
        text_scale=settings["cfg_scale"] if override is None else override,
        image_scale=extra.get("image_cfg_scale"),
        oscillate_text=extra.get("use_oscillation_guidance_for_text", inherited),
        oscillate_image=extra.get("use_oscillation_guidance_for_image", inherited),
        force_steps=settings.get("force_num", guidance.DEFAULT_FORCE_STEPS),
        fade_image=settings.get("scale_image_weight", False),
        initial_image_scale=settings.get("initial_image_scale", 1.0),
        flaw_fix=settings.get("use_flaw_fix", False),
    )


def sigmas_of(case: Case, version: str) -> Tensor:
    """The schedule from the size the case announces."""
    settings = case.info["scheduler"]
    height, width, frames = (float(case.input(name)[0]) for name in ("height", "width", "num_frames"))
    shift = 1.0
    if settings.get("use_timestep_transform", False):
        shift = schedule.shift_for(
            version,
            height,
            width,
            frames,
            transform_scale=settings.get("transform_scale", 1.0),
            scale_temporal=settings.get("scale_temporal", True),
        )
    return schedule.sigmas(
        settings["num_sampling_steps"], shift, discrete=settings.get("use_discrete_timesteps", False)
    )


def reference_latents(case: Case) -> list[list[Tensor]]:
    """Per sample, its reference latents ``[C, t, h, w]`` in order."""
    rows: list[list[Tensor]] = [[] for _ in range(case.input("z").shape[0])]
    for name, latent in sorted(case.with_prefix("in.ref.").items()):
        rows[int(name.split(".")[0])].append(latent)
    return rows


def masked(case: Case) -> tuple[flow.FrameMask | None, dict[str, Tensor]]:
    """The frame mask, given directly or by strategy text, and the outputs that record it."""
    direct = case.input("frame_mask")
    if direct is not None:
        return flow.FrameMask(direct[:, None, :, None, None], case.input("z")), {}
    if "mask_strategy" not in case.info:
        return None, {}
    latents, ratios = [], []
    for clip, own, text in zip(case.input("z"), reference_latents(case), case.info["mask_strategy"], strict=True):
        sources = [references.Reference(latent) for latent in own]
        wanted = references.apply_strategy(sources, masks.parse_strategy(text))
        placed = references.lay_out(wanted, clip, segment=case.info["loop_i"], align=case.info["align"])
        latents.append(placed.latent)
        ratios.append(placed.mask)
    start, mask = torch.stack(latents), torch.stack(ratios)
    return flow.FrameMask(mask[:, None, :, None, None], start), {"z_init": start, "frame_mask": mask}


def given(case: Case) -> tuple[flow.GivenFrames | None, dict[str, Tensor]]:
    """The given frames of the case's condition type, and the outputs that record them."""
    if "cond_type" not in case.info:
        return None, {}
    z, (own,) = case.input("z"), reference_latents(case)
    spans = references.given_spans(
        case.info["cond_type"],
        [latent.shape[1] for latent in own],
        z.shape[2],
        case.info["condition_frame_length"],
        close=case.info["loop"] == 1,
    )
    latent, ratios = torch.zeros_like(z[0]), torch.ones(z.shape[2])
    masks.write_spans(latent, ratios, own, spans)
    frames = tuple(index for index, ratio in enumerate(ratios.tolist()) if ratio == masks.KEPT)
    if list(frames) != case.info["mask_index"]:
        raise ValueError(f"given frames {frames} instead of {case.info['mask_index']}")
    return flow.GivenFrames(latent[None], frames), {"z_cond": latent[None], "z_cond_mask_frames": 1.0 - ratios}


@runs_cases(lambda case: case.kind == "sampler" and case.family.startswith("stdit3-"))
def run(case: Case) -> dict[str, Tensor]:
    """The run's timesteps, scales, masks and latents."""
    settings, levels = guidance_of(case), sigmas_of(case, case.family.removeprefix("stdit3-v"))
    mask, mask_outputs = masked(case)
    frames, given_outputs = given(case)
    rows = Rows(case, frames, mask)
    steps, clip_length = len(levels) - 1, case.input("z").shape[2]
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
        case.input("z"),
        levels,
        noise=noise.RecordedNoise(recorded if recorded is not None else torch.zeros(0)),
        mask=mask,
        renoise=frames if case.info.get("sample_args", {}).get("use_sdedit") else None,
    )
    done = list(walk)
    return {**mask_outputs, **given_outputs, **step_outputs(done, scales, clip_length)}


def step_outputs(done: list[flow.Step], scales: list[guidance.Scales], clip_length: int) -> dict[str, Any]:
    """What the case records of every step."""
    samples = done[0].x.shape[0]
    outputs = {
        "timesteps": torch.stack([step.sigma.expand(samples) for step in done]) * schedule.TRAIN_TIMESTEPS,
        "z_in": torch.stack([step.x for step in done]),
        "z_steps": torch.stack([step.after for step in done]),
        "z_final": done[-1].after,
        "text_gs": torch.tensor([each.text for each in scales]),
        "image_gs": torch.tensor([each.image * (clip_length // len(each.image)) for each in scales]),
    }
    if done[0].active is not None:
        outputs["x_mask"] = torch.stack([step.active.reshape(samples, -1) for step in done])
    return outputs
