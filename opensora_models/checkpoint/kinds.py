"""Says what a weight file is, from the names and shapes of its tensors alone.

Every loader of the pack asks :func:`describe` first, so that a file in the wrong place gets an error that names what
it really is. Sources: the key lists of the released Open-Sora checkpoints and the public layouts of the other models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class FileKind:
    """What a file is: an ``id`` for programs, a ``title`` with its article for people, the folder it belongs to."""

    id: str
    title: str
    folder: str = ""

    def sentence_part(self) -> str:
        """The title, with what loads it where that is ComfyUI, else the models folder where such a file belongs."""
        if self.folder in CORE_LOADERS and self not in OPEN_SORA:
            return f"{self.title}, which ComfyUI's {CORE_LOADERS[self.folder]} loads"
        return f"{self.title}, which belongs in models/{self.folder}" if self.folder else self.title


CORE_LOADERS = {"diffusion_models": "Load Diffusion Model"}
"""ComfyUI's nodes for files of other models, by the folder that these belong in."""

STDIT3_V12 = FileKind("stdit3-v1.2", "an Open-Sora 1.2 diffusion model (STDiT3)", "diffusion_models")
STDIT3_V13 = FileKind("stdit3-v1.3", "an Open-Sora 1.3 diffusion model (STDiT3)", "diffusion_models")
STDIT_V10 = FileKind("stdit-v1.0", "an Open-Sora 1.0 diffusion model (STDiT)", "diffusion_models")
STDIT2_V11 = FileKind("stdit2-v1.1", "an Open-Sora 1.1 diffusion model (STDiT2)", "diffusion_models")
MMDIT_V20 = FileKind("mmdit-v2.0", "an Open-Sora 2.0 diffusion model (MMDiT)", "diffusion_models")
MMDIT_V20_DCAE = FileKind(
    "mmdit-v2.0-dcae", "an Open-Sora 2.0 high-compression diffusion model (MMDiT)", "diffusion_models"
)
OPEN_SORA = (STDIT3_V12, STDIT3_V13, STDIT_V10, STDIT2_V11, MMDIT_V20, MMDIT_V20_DCAE)
"""Diffusion models of this family."""
VAE_V12 = FileKind("vae-v1.2", "an Open-Sora 1.2 video VAE", "vae")
VAE_V13 = FileKind("vae-v1.3", "an Open-Sora 1.3 video VAE", "vae")
HUNYUAN_VAE = FileKind("hunyuan-vae", "an Open-Sora 2.0 (HunyuanVideo) video VAE", "vae")
DC_AE = FileKind("dc-ae", "an Open-Sora 2.0 high-compression video autoencoder (DC-AE)", "vae")
FLUX_VAE = FileKind("flux-vae", "a Flux image VAE", "vae")
SD_VAE = FileKind("sd-vae", "a Stable Diffusion or SDXL image VAE", "vae")
HUNYUAN15_VAE = FileKind("hunyuan15-vae", "a HunyuanVideo 1.5 video VAE", "vae")
WAN_VAE = FileKind("wan-vae", "a Wan video VAE", "vae")
COGVIDEOX_VAE = FileKind("cogvideox-vae", "a CogVideoX video VAE", "vae")
LTXV_VAE = FileKind("ltxv-vae", "an LTX-Video VAE", "vae")
OTHER_VAE = FileKind("other-vae", "a VAE of another model", "vae")
T5 = FileKind("t5", "a T5 text encoder", "text_encoders")
UMT5 = FileKind("umt5", "a umT5 text encoder", "text_encoders")
CLIP = FileKind("clip", "a CLIP text encoder", "text_encoders")
LANGUAGE_MODEL = FileKind("language-model", "a language model", "text_encoders")
FULL_CHECKPOINT = FileKind("full-checkpoint", "a full image checkpoint (model, CLIP and VAE in one)", "checkpoints")
LORA = FileKind("lora", "a LoRA", "loras")
FLUX = FileKind("flux", "a Flux image model", "diffusion_models")
PIXART = FileKind("pixart", "a PixArt image model", "diffusion_models")
SD3 = FileKind("sd3", "a Stable Diffusion 3 image model", "diffusion_models")
SD_UNET = FileKind("sd-unet", "a Stable Diffusion or SDXL image model", "diffusion_models")
HUNYUAN_VIDEO = FileKind("hunyuan-video", "a HunyuanVideo model", "diffusion_models")
WAN = FileKind("wan", "a Wan video model", "diffusion_models")
LTXV = FileKind("ltxv", "an LTX-Video model", "diffusion_models")
COGVIDEOX = FileKind("cogvideox", "a CogVideoX or other Diffusers transformer", "diffusion_models")
EMPTY = FileKind("empty", "a file without any tensor")

UNKNOWN_ID = "unknown"


class Names:
    """The tensor names of one file, with the questions the rules below ask about them."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._joined = "\n" + "\n".join(shapes) + "\n"

    def has(self, *names: str) -> bool:
        """True if every one of these tensors exists."""
        return all(name in self.shapes for name in names)

    def starts(self, *prefixes: str) -> bool:
        """True if for every prefix some name begins with it."""
        return all("\n" + prefix in self._joined for prefix in prefixes)

    def contains(self, *parts: str) -> bool:
        """True if for every part some name contains it."""
        return all(part in self._joined for part in parts)

    def shape(self, name: str) -> Shape:
        """Shape of the tensor, () if there is none."""
        return tuple(self.shapes.get(name, ()))

    def rank(self, name: str) -> int:
        """Number of dimensions of the tensor, 0 if there is none."""
        return len(self.shape(name))


def _is_stdit3(names: Names) -> bool:
    return names.starts("spatial_blocks.", "temporal_blocks.") or (
        names.has("x_embedder.proj.weight", "fps_embedder.mlp.0.weight") and names.starts("final_layer.")
    )


def _is_v13(names: Names) -> bool:
    channels = names.shape("x_embedder.proj.weight")[1:2]
    return names.starts("x_embedder_cond.") or channels == (16,)


def _is_mmdit(names: Names) -> bool:
    return names.starts("double_blocks.") and names.has("cond_in.weight")


def _is_high_compression(names: Names) -> bool:
    # Patch size 1: the reference condition adds a single mask column (68 - 64 = 4 columns with patch 2).
    columns = names.shape("cond_in.weight")[1:2], names.shape("img_in.weight")[1:2]
    return all(columns) and columns[0][0] - columns[1][0] == 1


def _is_dual_stream(names: Names) -> bool:
    return names.starts("double_blocks.", "single_blocks.") or names.starts("single_transformer_blocks.")


def _is_vae(names: Names) -> bool:
    return names.starts("encoder.", "decoder.") and (
        names.contains("encoder.conv_in.") or names.contains("decoder.conv_in.") or names.contains("encoder.conv1.")
    )


def _has_video_layers(names: Names) -> bool:
    return any(names.rank(f"{half}.conv_in.conv.weight") == 5 for half in ("encoder", "decoder"))


def _is_hunyuan_vae(names: Names) -> bool:
    """Under the original's names, or under ComfyUI's, which are 1.3's but for a few layers."""
    if names.starts("decoder.up_blocks."):
        return names.has("encoder.conv_in.conv.weight")
    return _is_causal_vae(names) and names.rank("quant_conv.weight") == 5


def _is_causal_vae(names: Names) -> bool:
    return names.rank("encoder.conv_in.conv.weight") == 5 and names.starts("decoder.up.", "encoder.down.")


def _is_flux_vae(names: Names) -> bool:
    return names.shape("decoder.conv_in.weight")[1:2] == (16,) and names.rank("decoder.conv_in.weight") == 4


def _is_language_model(names: Names) -> bool:
    return names.contains("self_attn.q_proj.weight") and names.contains("embed_tokens.weight")


# First match wins, so the special stands before the general.
RULES: tuple[tuple[FileKind, Callable[[Names], bool]], ...] = (
    (FULL_CHECKPOINT, lambda n: n.starts("model.diffusion_model.", "first_stage_model.")),
    (LORA, lambda n: n.contains(".lora_A.") or n.contains(".lora_down.") or n.contains(".lora_up.")),
    (STDIT3_V13, lambda n: _is_stdit3(n) and _is_v13(n)),
    (STDIT3_V12, _is_stdit3),
    (STDIT2_V11, lambda n: n.contains(".attn_temp.") and n.starts("t_block_temp.")),
    (STDIT_V10, lambda n: n.contains(".attn_temp.")),
    (MMDIT_V20_DCAE, lambda n: _is_mmdit(n) and _is_high_compression(n)),
    (MMDIT_V20, _is_mmdit),
    (VAE_V12, lambda n: n.starts("temporal_vae.", "spatial_vae.")),
    (HUNYUAN15_VAE, lambda n: _has_video_layers(n) and n.contains(".gamma")),
    (WAN_VAE, lambda n: n.starts("encoder.", "decoder.") and n.contains(".gamma")),
    (COGVIDEOX_VAE, lambda n: _has_video_layers(n) and n.contains(".norm_layer.")),
    (LTXV_VAE, lambda n: _has_video_layers(n) and n.contains(".res_blocks.") and n.starts("decoder.up_blocks.")),
    (HUNYUAN_VAE, _is_hunyuan_vae),
    (VAE_V13, _is_causal_vae),
    (DC_AE, lambda n: n.starts("encoder.project_in.", "decoder.project_out.")),
    (FLUX_VAE, _is_flux_vae),
    (SD_VAE, lambda n: n.rank("decoder.conv_in.weight") == 4),
    (OTHER_VAE, _is_vae),
    (UMT5, lambda n: n.has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")),
    (T5, lambda n: n.starts("encoder.block.0.layer.0.SelfAttention.")),
    (CLIP, lambda n: n.contains("text_model.encoder.layers.") or n.contains("transformer.resblocks.")),
    (HUNYUAN_VIDEO, lambda n: n.contains("txt_in.individual_token_refiner.") or n.contains(".token_refiner.")),
    (FLUX, _is_dual_stream),
    (SD3, lambda n: n.starts("joint_blocks.")),
    (PIXART, lambda n: n.has("t_block.1.weight") or n.has("adaln_single.linear.weight", "pos_embed.proj.weight")),
    (WAN, lambda n: n.has("head.modulation") or n.starts("condition_embedder.time_embedder.")),
    (LTXV, lambda n: n.has("patchify_proj.weight")),
    (SD_UNET, lambda n: n.starts("input_blocks.") or n.starts("down_blocks.", "up_blocks.")),
    (COGVIDEOX, lambda n: n.starts("transformer_blocks.")),
    (LANGUAGE_MODEL, _is_language_model),
)


def describe(shapes: Shapes) -> FileKind:
    """What a file with these tensor names and shapes is; an unknown one is described by a few of its names."""
    if not shapes:
        return EMPTY
    names = Names(shapes)
    for kind, matches in RULES:
        if matches(names):
            return kind
    some = ", ".join(f"'{name}'" for name in list(shapes)[:3])
    return FileKind(UNKNOWN_ID, f"a file this pack does not know, with {len(shapes)} tensors such as {some}")
