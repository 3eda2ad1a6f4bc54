"""Our VAE and text encoder in core's own loaders: Load VAE, Load CLIP and Load Checkpoint.

Core decides by a long chain of names which VAE or text encoder a state dict is, and ends with a ``KeyError`` or a page
of mismatched sizes on ours. Each function here looks first whether the state dict is ours: then it is loaded as our own
loader would do it, or refused in one sentence that names that loader. Anything else is core's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.sd
from torch import Tensor

from ...checkpoint.kinds import CLIP, HUNYUAN_VAE, T5, VAE_V12, VAE_V13, describe
from ...checkpoint.opening import CLIP_PARTS, VAE_PARTS, Checkpoint, checkpoint_of
from ...checkpoint.readers import LoadedTensors
from ...checkpoint.settings import NAME as SETTINGS
from ...messages.quoting import one_line
from ...text.clip_config import TOKENS
from ...text.t5_config import EMBEDDING, GATED, TIED_EMBEDDING
from ...text.tokens import VOCABULARY
from ...vae.recognition import Recipe, recognise, temporal_names
from ...vae.tiled import OpenSora20
from ...vae.tiled_files import is_dc_ae, is_hunyuan
from ..text.clip import clip_of
from ..text.clip_l import ClipL, clip_l_of
from ..vae.vae import OpenSoraVAE

StateDict = Mapping[str, Tensor]

ONLY_V12 = "decoder.block_res_blocks."
"""In the names of Open-Sora 1.2's temporal half."""

ONLY_V13 = ".upsample.conv3d."
"""In the names of Open-Sora 1.3's decoder and of no other causal autoencoder that shares the rest of its names."""
ONLY_DC_AE = "decoder.project_out."
"""In the names of 2.0's high-compression autoencoder. Core has others of its design, for pictures and sound."""

HUNYUAN_IN, CORES_WIDTH = "encoder.conv_in.conv.weight", 128
"""By the rows of this weight a Hunyuan VAE is as wide as core builds it, whatever the file holds."""

CORES_MARK, CORES_SIZES = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight", ((10240,), (5120,))
"""By the rows of this matrix core tells the T5 v1.1 it has classes for, XXL and XL."""

CORES_CLIP_WIDTH = 768
"""How wide ComfyUI's smallest CLIP is, CLIP-L."""

WORDS_ROUNDED_UP = 32_256
"""A T5's vocabulary has 32,100 words, or the next multiples of 128; other vocabularies are far larger or smaller."""


@contextmanager
def _naming(loader: str) -> Iterator[None]:
    """Sentences of our own checks, with the loader that takes the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{one_line(str(error))} Files of Open-Sora are loaded with {loader}.") from error


def vae_recipe(state_dict: StateDict, metadata: Mapping[str, str] | None) -> Recipe | None:
    """What core's VAE is to be built of where the state dict is an Open-Sora VAE; None for any other.

    2.0's released VAE is HunyuanVideo's, tensor by tensor, and core has a class of its own for that: it is ours only
    where settings say that one of our VAEs was saved, or in a width that core's class does not have. Raises ValueError
    for one of ours that is damaged or only half of one.
    """
    marked = any(mark in name for name in state_dict for mark in (ONLY_V12, ONLY_V13, ONLY_DC_AE, SETTINGS))
    if not marked and not _of_another_width(state_dict):
        return None
    checkpoint = _in_memory(state_dict, metadata, "The VAE file", VAE_PARTS)
    known = checkpoint.kind in (VAE_V12, VAE_V13) or is_dc_ae(checkpoint.shapes) or temporal_names(checkpoint.shapes)
    if not (marked and known) and not (checkpoint.kind is HUNYUAN_VAE and _is_ours_of_20(checkpoint)):
        return None
    with _naming("Open-Sora Load VAE"):
        recipe = recognise(checkpoint)
        recipe.check()
    return recipe


def _of_another_width(state_dict: Mapping[str, Any]) -> bool:
    weight = state_dict.get(HUNYUAN_IN)
    return isinstance(weight, Tensor) and weight.shape[0] != CORES_WIDTH


def _is_ours_of_20(checkpoint: Checkpoint) -> bool:
    saved_by_us = checkpoint.settings().get("version") == OpenSora20.version
    return saved_by_us or (checkpoint.shapes[HUNYUAN_IN][0] != CORES_WIDTH and is_hunyuan(checkpoint.shapes))


def _in_memory(
    state_dict: StateDict, metadata: Mapping[str, str] | None, name: str, parts: Sequence[str]
) -> Checkpoint:
    source = LoadedTensors({name: value for name, value in state_dict.items() if isinstance(value, Tensor)})
    return checkpoint_of(Path(name), (source,), dict(metadata or {}), parts)


def become_ours(vae: comfy.sd.VAE, recipe: Recipe, **options: Any) -> None:
    """Turns the object core is just making into our VAE."""
    vae.__class__ = OpenSoraVAE
    with _naming("Open-Sora Load VAE"):
        OpenSoraVAE.__init__(vae, recipe, device=options.get("device"), dtype=options.get("dtype"))


def is_our_t5(state_dict: StateDict) -> bool:
    """Whether this is a T5 v1.1 encoder of a size core has no class for."""
    shapes = {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)}
    words = (shapes.get(EMBEDDING) or shapes.get(TIED_EMBEDDING) or (VOCABULARY,))[0]
    if describe(shapes) is not T5 or GATED not in shapes or not VOCABULARY <= words <= WORDS_ROUNDED_UP:
        return False
    return shapes.get(CORES_MARK, ())[:1] not in CORES_SIZES


def text_encoder(
    state_dicts: Sequence[StateDict], model_options: Mapping[str, Any] | None, disable_dynamic: bool
) -> comfy.sd.CLIP | None:
    """The CLIP where core was given our T5; None for any other text encoders.

    Raises ValueError for one of ours that is damaged, or given together with others than CLIP-L, and for the tiny
    CLIP-L without the T5 it stands beside: ComfyUI's class has another width and ends with a page of mismatched sizes.
    """
    others = [each for each in state_dicts if not is_our_t5(each)]
    if len(others) == len(state_dicts):
        for each in others:
            _expect_cores_width(each)
        return None
    with _naming("Open-Sora Load Text Encoder"):
        clip_l = _only_clip_l(others) if len(state_dicts) > 1 else None
        t5 = next(each for each in state_dicts if is_our_t5(each))
        return clip_of(t5, "The text encoder", dict(model_options or {}), disable_dynamic, clip_l)


def _expect_cores_width(state_dict: StateDict) -> None:
    tokens = state_dict.get(TOKENS)
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[1] < CORES_CLIP_WIDTH:
        raise ValueError(
            f"This CLIP-L is {tokens.shape[1]} wide, where every other is {CORES_CLIP_WIDTH}: it belongs to a tiny "
            "Open-Sora 2.0 and is loaded together with its T5, by Open-Sora Load Text Encoder or core's DualCLIPLoader."
        )


def _only_clip_l(others: Sequence[StateDict]) -> ClipL:
    """The encoder that stands beside our T5, which ComfyUI's own classes for pairs would not take in its size."""
    clips = [_in_memory(each, None, "the other one", CLIP_PARTS) for each in others]
    reason = "CLIP-L is the only one for it"
    if [each.kind for each in clips] == [CLIP]:
        try:
            return clip_l_of(clips[0])
        except ValueError as error:
            reason = str(error).rstrip(".")
    raise ValueError(f"One of these text encoders is a T5 of a size that ComfyUI cannot combine with others; {reason}.")
