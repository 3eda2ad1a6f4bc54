"""Texts of Open-Sora 2.0: ids padded by our rules, states from ComfyUI's T5 and CLIP, alone and as the nodes encode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from golden.families.sampling_v2 import same
from golden.families.text import shapes_of, t5_config_of
from golden.runner import Case, fill_by_rule, runs_cases, weights_by_rule
from opensora.opensora_models.text.clip_config import ClipConfig, encoder_shapes
from opensora.opensora_models.text.padding import CLIP_END, CLIP_LENGTH, aligned_length, padded
from support.comfyui import comfyui_root, use_comfyui


def _part(case: Case, name: str) -> Case:
    """The case as that of one of its encoders."""
    return Case(case.name, {**case.info, "config": case.config[name]}, case.tensors)


def _weights(case: Case, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return weights_by_rule({name: torch.empty(shape) for name, shape in shapes.items()}, case)


def _clip_config(case: Case) -> ClipConfig:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return ClipConfig(**{name: case.config[name] for name in names})


def both_encoders(case: Case) -> Any:
    """The case's T5 and CLIP-L in one CLIP, built as the loader node builds it."""
    use_comfyui()
    from opensora.opensora_models.native.text.clip import build_clip
    from opensora.opensora_models.native.text.clip_l import ClipL

    t5, clip = _part(case, "t5"), _part(case, "clip")
    config, clip_config = t5_config_of(t5), _clip_config(clip)
    second = ClipL(_weights(clip, encoder_shapes(clip_config)), clip_config)
    return build_clip(_weights(t5, shapes_of(config)), config, clip_l=second)


@runs_cases(lambda case: case.family == "v2-text" and comfyui_root() is not None)
def embedders(case: Case) -> list[dict[str, Tensor]]:
    """All states of T5 without a mask, those of an aligned sequence, and CLIP's pooled state: twice."""
    clip, settings = both_encoders(case), case.config
    from opensora.opensora_models.native.text.t5_tokenizer import clip_ids, token_ids

    length, clip_length = settings["t5_max_length"], settings.get("clip_max_length", CLIP_LENGTH)
    t5_rows = [_row(token_ids(prompt), length, 0) for prompt in settings["t5_prompts"]]
    clip_rows = [_row(clip_ids(prompt), clip_length, CLIP_END) for prompt in settings["clip_prompts"]]
    same("T5 ids", t5_rows, case.tensors["in.t5_input_ids"].tolist())
    same("CLIP ids", clip_rows, case.tensors["in.clip_input_ids"].tolist())
    t5 = clip.cond_stage_model.t5xxl.transformer
    alone = {
        "t5_hidden": t5(torch.tensor(t5_rows), None, dtype=torch.float32)[0],
        "clip_pooled": _cores_clip(_part(case, "clip"))(torch.tensor(clip_rows))[3],
    }
    rest = _aligned(case, t5, t5_rows[0]) if "align_case" in settings else {}
    usual = clip_length == CLIP_LENGTH and settings["clip"].get("hidden_act") == "quick_gelu"
    nodes = _as_nodes(clip, settings, length) if usual else alone
    return [alone | rest, nodes | rest]


def _cores_clip(case: Case) -> nn.Module:
    """The case's CLIP in ComfyUI's class, without our loader."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    # Old configs number the end token 2 and mean the one of the vocabulary.
    clip = CLIPTextModel({**case.config, "eos_token_id": CLIP_END}, torch.float32, "cpu", comfy.ops.disable_weight_init)
    fill_by_rule(clip, case)
    return clip


def _row(ids: list[int], length: int, pad: int) -> list[int]:
    """Exactly ``length`` ids of a text."""
    return [pair[0] for pair in padded([(token, 1.0) for token in ids], length, pad)[0]]


def _as_nodes(clip: Any, settings: dict[str, Any], length: int) -> dict[str, Tensor]:
    """What Open-Sora Text Encode gives for each prompt."""
    from opensora.opensora_models.native.text.encoding import encode_prompt
    from opensora.opensora_models.releases.known import release_named

    def encode(prompt: str) -> tuple[Tensor, Tensor]:
        ((states, extra),) = encode_prompt(
            clip, prompt, limit=length, name="negative prompt", release=release_named("2.0")
        ).conditioning
        return states, extra["pooled_output"]

    return {
        "t5_hidden": torch.cat([encode(prompt)[0] for prompt in settings["t5_prompts"]]),
        "clip_pooled": torch.cat([encode(prompt)[1] for prompt in settings["clip_prompts"]]),
    }


def _aligned(case: Case, t5: nn.Module, row: list[int]) -> dict[str, Tensor]:
    """The last states of a text that was filled up to a multiple for several devices."""
    align, length = case.config["align_case"], case.config["t5_max_length"]
    total = aligned_length(length, align["added_tokens"], align["seq_align"])
    same("aligned length", total, align["total_tokens"])
    last = case.expected["t5_hidden_align8"].shape[1]
    ids = torch.tensor([row + [0] * (total - length)])
    return {"t5_hidden_align8": t5(ids, None, dtype=torch.float32)[0][:, -last:]}
