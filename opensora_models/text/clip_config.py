"""The numbers of a CLIP-L text encoder, read off the shapes of its weights, and what makes one fit Open-Sora 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.counting import count_blocks
from ..messages.quoting import LONGEST_FILE_NAME, quoted
from .padding import CLIP_LENGTH

Shape = tuple[int, ...]

MODEL = "text_model."
TOKENS = "text_model.embeddings.token_embedding.weight"
POSITIONS = "text_model.embeddings.position_embedding.weight"
BLOCKS = "text_model.encoder.layers."
INNER = f"{BLOCKS}0.mlp.fc1.weight"
PROJECTION = "text_projection.weight"
"""A matrix that Open-Sora does not use and many files lack."""

WORDS = 49408
"""Words of every CLIP's vocabulary; ComfyUI builds each CLIP with this number."""
WIDTH = 768
"""The width of CLIP-L. Narrower ones are accepted: small models are trained with them, and each MODEL tells its own."""
HEAD = 64
"""Values of a head in every released CLIP; a narrower encoder has one head."""

OTHER_CLIPS = {1024: "CLIP-H", 1280: "CLIP-G"}
"""By width: the ones that lie in the same folder."""

KNOWN_FILE = "clip_l.safetensors"
EXPECTED = f"CLIP-L, for example {KNOWN_FILE}, which Flux and SD3 use as well"


@dataclass(frozen=True)
class ClipConfig:
    """Sizes under the names ComfyUI's CLIP takes them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int

    def as_options(self) -> dict[str, int]:
        """As a dictionary for ComfyUI's ``clip_l_model_config``."""
        return {**vars(self), "max_position_embeddings": CLIP_LENGTH}


def encoder_name(name: str) -> str | None:
    """The name of a weight in the text encoder; None for that of the picture half and others a full CLIP file holds."""
    is_number = name == PROJECTION or (name.startswith(MODEL) and not name.endswith("position_ids"))
    return name if is_number else None


def clip_config(shapes: Mapping[str, Shape], file: str | Path) -> ClipConfig:
    """Config of the encoder with these weight shapes. Raises ValueError naming ``file`` for another kind of CLIP."""
    name = quoted(Path(file).name, LONGEST_FILE_NAME)
    if any("transformer.resblocks." in key for key in shapes):
        raise ValueError(f"{name} is a CLIP in OpenCLIP's form, such as CLIP-G or CLIP-H; expected {EXPECTED}.")
    missing = [key for key in (TOKENS, POSITIONS, INNER) if key not in shapes]
    if missing:
        raise ValueError(f"{name} lacks '{missing[0]}'; it is incomplete, download it again.")
    for key in (TOKENS, POSITIONS, INNER):
        if len(shapes[key]) != 2 or 0 in shapes[key]:
            raise ValueError(
                f"{name} has the tensor '{key}' of shape {list(shapes[key])}; expected 2 sizes, at least 1."
            )
    (words, width), positions = shapes[TOKENS], shapes[POSITIONS][0]
    if width > WIDTH:
        kind = OTHER_CLIPS.get(width, "a CLIP")
        raise ValueError(f"{name} is {kind} with {width} numbers per token where CLIP-L has {WIDTH}; use {EXPECTED}.")
    if positions != CLIP_LENGTH or words != WORDS:
        raise ValueError(
            f"{name} is a CLIP for {positions} tokens of {words} words, but Open-Sora 2.0 was trained with "
            f"{CLIP_LENGTH} of {WORDS}; use {EXPECTED}."
        )
    heads = width // HEAD if width % HEAD == 0 else 1
    return ClipConfig(width, shapes[INNER][0], count_blocks(shapes, BLOCKS), heads)


def encoder_shapes(config: ClipConfig) -> dict[str, Shape]:
    """Names and shapes of the weights every encoder of this config must have."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, Shape] = {TOKENS: (WORDS, width), POSITIONS: (CLIP_LENGTH, width)}

    def layer(name: str, *sizes: int) -> None:
        shapes[f"{name}.weight"] = sizes
        shapes[f"{name}.bias"] = sizes[:1]

    for number in range(config.num_hidden_layers):
        block = f"{BLOCKS}{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}.self_attn.{part}", width, width)
        layer(f"{block}.mlp.fc1", inner, width)
        layer(f"{block}.mlp.fc2", width, inner)
        layer(f"{block}.layer_norm1", width)
        layer(f"{block}.layer_norm2", width)
    layer("text_model.final_layer_norm", width)
    return shapes
