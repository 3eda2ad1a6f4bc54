"""Whole sampling runs of Open-Sora 2.0 through the functions the nodes use, computing only rows that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golden.families.mmdit import network_of
from golden.families.sampling_v2 import FAMILY, counting, expected_shape, same, times_of
from golden.runner import Case, runs_cases
from opensora.opensora_models.mmdit.tokens import pack, reference_features
from opensora.opensora_models.releases.guidance import Guidance
from opensora.opensora_models.sampling import given_input, three_rows
from opensora.opensora_models.sampling.guidance import Branch, Scales

ROWS = (Branch.PROMPT, Branch.IMAGE, Branch.NOTHING)
"""The order in which the original computes its rows."""


class Rows:
    """The network of a case with its texts and references; counts the rows it computes."""

    def __init__(self, case: Case) -> None:
        self.network, self.case, self.count = network_of(case, case.config["model"]), case, 0
        clip, kind = case.input("noise")[0], case.config["cond_type"]
        references = [value for _, value in sorted(case.with_prefix("in.ref_").items())]
        causal = case.config["is_causal_vae"]
        self.spans = given_input.condition_spans(
            kind, [ref.shape[1] for ref in references], clip.shape[1], causal=causal
        )
        self.latent, self.given = given_input.lay_in(references, self.spans, clip)
        self.embedded = case.config["model"]["guidance_embed"]

    @property
    def frames(self) -> list[int]:
        """The given latent frames."""
        return self.given.nonzero().flatten().tolist()

    def reference(self, branch: Branch) -> Tensor:
        """The reference input of a row: the last row is shown neither latents nor their mask."""
        shown = branch is not Branch.NOTHING
        return reference_features(self.latent[None] * shown, self.given * shown)

    def velocity(self, x: Tensor, time: Tensor, branches: Sequence[Branch]) -> Tensor:
        """One row per branch."""
        rows = [ROWS.index(branch) for branch in branches]
        self.count += len(rows)
        return self.network(
            x.repeat(len(rows), 1, 1, 1, 1),
            time,
            self.case.input("txt")[rows],
            self.case.input("y_vec")[rows],
            reference=None if self.embedded else torch.cat([self.reference(branch) for branch in branches]),
            guidance=torch.full((1,), float(self.case.config["guidance"])) if self.embedded else None,
        )

    def predict(self, x: Tensor, sigma: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
        """Denoised latents of every branch."""
        velocity = self.velocity(x, sigma, branches)
        return [x - row[None] * sigma.reshape(-1, 1, 1, 1, 1) for row in velocity]


def guidance_of(settings: dict[str, Any]) -> Guidance:
    """The case's settings; only conditions of pictures fade."""
    return Guidance(
        text_scale=settings["guidance"],
        image_scale=settings["guidance_img"],
        oscillate_text=settings["text_osci"],
        oscillate_image=settings["image_osci"],
        fade_image=settings["scale_temporal_osci"] and "i2v" in settings["cond_type"],
    )


def recorded_scales(scales: Sequence[Scales], frames: int) -> Tensor:
    """[steps, 1 + T]: the text's scale, then the image's per latent frame."""
    return torch.tensor([[each.text, *each.image * (frames // len(each.image))] for each in scales])


@runs_cases(lambda case: case.family == FAMILY and "cond_type" in (case.config or {}))
def run(case: Case) -> dict[str, Tensor]:
    """The run's times, scales, latents and single predictions."""
    settings, noise, rows = case.config, case.input("noise"), Rows(case)
    frames, patch = noise.shape[2], settings["model"]["patch_size"]
    same("latent frames", frames, counting(settings).latents(settings["num_frames"]))
    same("latent size", tuple(noise.shape[3:]), expected_shape({**settings, "patch_size": patch}))
    levels = times_of(settings)
    scales = [three_rows.UNGUIDED] * (len(levels) - 1)
    if settings["method"] != "distill":
        scales = three_rows.run_scales(guidance_of(settings), levels.tolist(), frames)
    done = list(three_rows.walk(rows.predict, noise, levels, scales, has_given=bool(rows.frames)))
    same("rows computed", rows.count, three_rows.rows_of(scales, bool(rows.frames)))
    finished = done[-1].after
    if given_input.is_written_back(settings["cond_type"]):
        finished = given_input.write_back(finished, rows.latent[None], rows.frames)
    out = {
        "schedule": levels,
        "step_times": levels[:-1],
        "guidance_text_then_image_per_frame": recorded_scales(scales, frames),
        "latents_packed": torch.cat([pack(step.x, patch) for step in done]),
        "final_latent": finished,
    }
    wanted = ROWS[: case.input("txt").shape[0]]
    if settings["model"]["cond_embed"]:
        out["cond_packed"] = torch.cat([pack(rows.reference(branch), patch) for branch in wanted])
    for name in case.expected:
        if name.startswith("pred_step"):
            step = done[int(name.removeprefix("pred_step"))]
            out[name] = pack(rows.velocity(step.x, step.sigma[None], wanted), patch)
    return out
