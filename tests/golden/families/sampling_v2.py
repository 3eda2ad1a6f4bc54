"""Open-Sora 2.0 around its network: noise and tokens, times, sizes, prompts, conditions, references."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, runs_cases
from opensora.opensora_models.mmdit.tokens import image_ids, pack, reference_features, text_ids, token_grid
from opensora.opensora_models.releases.flow_shift import flow_shift
from opensora.opensora_models.releases.lengths import Causal, Strided
from opensora.opensora_models.releases.sizes import Computed
from opensora.opensora_models.sampling import given_input, pictures
from opensora.opensora_models.sampling.schedule import sigmas
from opensora.opensora_models.text.suffixes import append_suffixes

FAMILY = "v2-sampling"
TOKEN_PIXELS = 16


def same(what: str, got: Any, want: Any) -> None:
    """Holds what a case records outside its tensors."""
    if got != want:
        raise ValueError(f"{what}: got {got!r}, recorded {want!r}")


def counting(settings: dict[str, Any]) -> Causal | Strided:
    """The frame counting of a case."""
    kind = Causal if settings.get("is_causal_vae", True) else Strided
    return kind(settings.get("temporal_reduction", 4))


def expected_shape(settings: dict[str, Any]) -> tuple[int, int]:
    """Latent height and width of a picture in pixels."""
    patch, cell = settings.get("patch_size", 2), settings.get("ae_spatial_compression", TOKEN_PIXELS)
    return patch * ceil(settings["height_px"] / cell), patch * ceil(settings["width_px"] / cell)


@runs_cases(lambda case: case.family == FAMILY and "out.packed" in case.tensors)
def packing(case: Case) -> dict[str, Tensor]:
    """Tokens, their places, and one row per prompt."""
    noise, patch, rows = case.input("noise"), case.config["patch_size"], case.config["prompts"]
    same("latent size", tuple(noise.shape[3:]), expected_shape(case.config))
    packed, places = pack(noise, patch), image_ids(token_grid(noise, patch))
    words = text_ids(case.expected["txt_ids"].shape[1])
    return {
        "packed": packed,
        "img_batch3": packed.repeat(rows, 1, 1),
        "img_ids": places.expand(rows, -1, -1),
        "txt_ids": words.expand(rows, -1, -1),
    }


@runs_cases(lambda case: case.family == FAMILY and "rows" in (case.config or {}))
def schedule(case: Case) -> dict[str, Tensor]:
    """Flow times of every row."""
    return {f"timesteps_{row['index']}": times_of(row).double() for row in case.config["rows"]}


def times_of(settings: dict[str, Any]) -> Tensor:
    """The times of a clip in frames and pixels, moved or not."""
    if not settings["shift"]:
        return sigmas(settings["num_steps"])
    shift = settings["flow_shift"]
    if shift is None:
        height, width = (settings.get(name, settings.get(f"{name}_px")) for name in ("height", "width"))
        cell = settings.get("ae_spatial_compression", TOKEN_PIXELS)
        tokens = ceil(height / cell) * ceil(width / cell)
        shift = flow_shift(tokens, counting(settings).latents(settings["num_frames"]))
    return sigmas(settings["num_steps"], shift)


@runs_cases(lambda case: case.family == FAMILY and "tables" in (case.config or {}))
def sizes_and_text(case: Case) -> dict[str, Tensor]:
    """Size tables in the order of their names, latent frames, and the ends of prompts."""
    out: dict[str, Tensor] = {}
    for table in case.config["tables"]:
        rule = Computed(table["ae_spatial_compression"], adjusted=table["adjust_to_pixel_count"])
        known = rule.table(table["resolution"])
        same("names", [name for name in table["names"] if name not in known], [])
        found = [rule.size(table["resolution"], name) for name in table["names"]]
        out[table["tensor"].removeprefix("out.")] = torch.tensor(found)
    for text in case.config["texts"]:
        same("prompt", append_suffixes(text["prompt"], text["fps"], text["motion_score"]), text["result"])
    frames = [int(row[0]) for row in case.expected["latent_frames"]]
    counted = [[count, Causal().latents(count), Strided().latents(count)] for count in frames]
    return out | {"latent_frames": torch.tensor(counted)}


@runs_cases(lambda case: case.family == FAMILY and "refs" in (case.config or {}))
def conditions(case: Case) -> dict[str, Tensor]:
    """Masks and reference features of every condition."""
    out: dict[str, Tensor] = {}
    clip, causal = case.input("noise")[0], case.config["is_causal_vae"]
    for kind in sorted({name.removesuffix("_mask") for name in case.expected if name.endswith("_mask")}):
        references = references_of(case, kind, causal)
        spans = given_input.condition_spans(kind, [ref.shape[1] for ref in references], clip.shape[1], causal=causal)
        latent, given = given_input.lay_in(references, spans, clip)
        features = reference_features(latent[None], given)
        out[f"{kind}_mask"], out[f"{kind}_masked_ref"] = features[:, :1], features[:, 1:]
        out[f"{kind}_cond_packed"] = pack(features, case.config["patch_size"])
    return out


def references_of(case: Case, kind: str, causal: bool) -> list[Tensor]:
    """The latents a condition is given: of pictures those the case names, of a clip the end it continues."""
    if kind == given_input.NOTHING:
        return []
    if kind.startswith("i2v"):
        return [case.input(name.strip()) for name in case.config["refs"][kind].split("then")]
    count, clip = given_input.given_latents(kind, causal), case.input("ref_video")
    return [clip[:, :count] if "head" in kind else clip[:, -count:]]


@runs_cases(lambda case: case.family == FAMILY and case.input("decoded") is not None)
def preprocessing(case: Case) -> dict[str, Tensor]:
    """References at the size of the clip, and decoded values as 8-bit frames."""
    out = {"frame_uint8": pictures.to_pixels(case.input("decoded"))}
    for entry in case.config["cases"]:
        name = f"{entry['kind']}_{entry['index']}"
        pixels, target = case.input(name), entry["target"]
        if entry["kind"] == "image":
            filled = pictures.fill_picture(pixels, *target).movedim(-1, 0)[:, None] / pictures.WHITE
        else:
            filled = pictures.fill_clip(pixels / pictures.WHITE, *target).movedim(0, 1)
        out[name] = pictures.to_model(filled)
    return out
