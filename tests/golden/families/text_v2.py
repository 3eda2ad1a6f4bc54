"""Texts of Open-Sora 2.0: ids padded by our rules, states from ComfyUI's T5 and CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.families.sampling_v2 import same
from golden.families.text import build
from golden.runner import Case, fill_by_rule, runs_cases
from opensora.opensora_models.text.padding import CLIP_END, CLIP_LENGTH, aligned_length, padded
from support.comfyui import comfyui_root, use_comfyui


def _part(case: Case, name: str) -> Case:
    """The case as that of one of its encoders."""
    return Case(case.name, {**case.info, "config": case.config[name]}, case.tensors)


def _ids(tokenizer: Any, text: str, length: int, pad: int) -> list[int]:
    """Exactly ``length`` ids of a text."""
    pairs = [(token, 1.0) for token in tokenizer.tokenizer(text)["input_ids"]]
    return [pair[0] for pair in padded(pairs, length, pad)[0]]


def _clip(case: Case) -> Any:
    """The case's CLIP in ComfyUI's class."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    # Old configs number the end token 2 and mean the one of the vocabulary.
    clip = CLIPTextModel({**case.config, "eos_token_id": CLIP_END}, torch.float32, "cpu", comfy.ops.disable_weight_init)
    fill_by_rule(clip, case)
    return clip


@runs_cases(lambda case: case.family == "v2-text" and comfyui_root() is not None)
def embedders(case: Case) -> dict[str, Tensor]:
    """All states of T5 without a mask, those of an aligned sequence, and CLIP's pooled state."""
    use_comfyui()
    from comfy.text_encoders.flux import FluxTokenizer

    tokenizers, settings = FluxTokenizer(), case.config
    length, clip_length = settings["t5_max_length"], settings.get("clip_max_length", CLIP_LENGTH)
    t5_ids = [_ids(tokenizers.t5xxl, prompt, length, 0) for prompt in settings["t5_prompts"]]
    clip_ids = [_ids(tokenizers.clip_l, prompt, clip_length, CLIP_END) for prompt in settings["clip_prompts"]]
    same("T5 ids", t5_ids, case.tensors["in.t5_input_ids"].tolist())
    same("CLIP ids", clip_ids, case.tensors["in.clip_input_ids"].tolist())
    encoder = build(_part(case, "t5"), torch.float32).cond_stage_model.t5xxl.transformer
    out = {
        "t5_hidden": encoder(torch.tensor(t5_ids), None, dtype=torch.float32)[0],
        "clip_pooled": _clip(_part(case, "clip"))(torch.tensor(clip_ids))[3],
    }
    if "align_case" in settings:
        align = settings["align_case"]
        total = aligned_length(length, align["added_tokens"], align["seq_align"])
        same("aligned length", total, align["total_tokens"])
        ids = torch.tensor([t5_ids[0] + [0] * (total - length)])
        last = case.expected["t5_hidden_align8"].shape[1]
        out["t5_hidden_align8"] = encoder(ids, None, dtype=torch.float32)[0][:, -last:]
    return out
