"""The video autoencoders of release 2.0: the Hunyuan VAE and the DC-AE, in one piece, in tiles, and single blocks.

Every case is computed plainly and by strips, and the two must agree before the result is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opensora.opensora_models.vae.dcae import AttentionBlock, DcAeConfig
from opensora.opensora_models.vae.distribution import Posterior, mode
from opensora.opensora_models.vae.hunyuan import HunyuanConfig
from opensora.opensora_models.vae.strips import Rows, Strips
from opensora.opensora_models.vae.tiled import (
    DC_AE_TILING,
    HUNYUAN_TILING,
    OpenSora20,
    OpenSora20HighCompression,
    TiledAutoencoder,
    Tiling,
)

from ..runner import Case, fill_by_rule, runs_cases

# Of one byte: every layer is cut wherever it can be.
PLANS = (Strips(1, lean=True),)
STRIPS_TOLERANCE = 3e-5


def _both(compute: Callable[[Strips | None], Tensor]) -> Tensor:
    """The plain result, after checking that strips give the same."""
    plain = compute(None)
    for plan in PLANS:
        torch.testing.assert_close(compute(plan), plain, atol=STRIPS_TOLERANCE, rtol=1e-4)
    return plain


def _family(name: str) -> Callable[[Case], bool]:
    return lambda case: case.family == name


def _filled(model: Any, case: Case) -> Any:
    fill_by_rule(model, case)
    return model.eval()


def _video(case: Case) -> Tensor:
    """The pixels of a case, every stored one repeated ``upsample`` times in height and width."""
    video = case.input("video")
    if video is not None:
        return video
    small = case.input("video_lowres")
    assert small is not None
    for axis in (3, 4):
        small = small.repeat_interleave(case.config["upsample"], dim=axis)
    return small


def _pixels(case: Case, model: TiledAutoencoder) -> dict[str, Tensor]:
    latents = model.denormalise(case.tensors["in.latent"])
    video = _both(lambda plan: model.decode(latents, None, plan))
    step = case.config.get("subsample", 1)
    return {"video": video, "video_subsampled": video[..., ::step, ::step]}


# -- Hunyuan VAE -----------------------------------------------------------------------------------------------------


def hunyuan(case: Case) -> OpenSora20:
    """The network a case describes, with its weights."""
    settings = case.config
    config = HunyuanConfig(
        widths=tuple(settings["block_out_channels"]), layers=settings["layers_per_block"],
        latent_channels=settings["latent_channels"], groups=settings["norm_num_groups"],
        channels=settings["in_channels"], time_factor=settings["time_compression_ratio"],
        space_factor=settings["spatial_compression_ratio"], attention=settings["mid_block_add_attention"],
        scale=settings["scale_factor"], shift=settings["shift_factor"],
    )  # fmt: skip
    tiling = Tiling(
        spatial=settings.get("use_spatial_tiling", HUNYUAN_TILING.spatial),
        temporal=settings.get("use_temporal_tiling", HUNYUAN_TILING.temporal),
        size=settings.get("sample_size", HUNYUAN_TILING.size),
        frames=settings.get("sample_tsize", HUNYUAN_TILING.frames),
        overlap=settings.get("tile_overlap_factor", HUNYUAN_TILING.overlap),
    )  # fmt: skip
    return _filled(OpenSora20(config, tiling=tiling), case)


@runs_cases(_family("v2-hunyuan-vae"))
def hunyuan_vae(case: Case) -> dict[str, Tensor]:
    """Moments and latents of a clip, pixels of latents, or the middle alone."""
    model = hunyuan(case)
    if case.input("latent") is not None:
        return _pixels(case, model)
    if case.input("hidden") is not None:
        return _middle(case, model)
    video = _video(case)
    moments = _both(lambda plan: model.encode(video, plan, draw=lambda posterior: posterior.moments))
    latents = _both(lambda plan: model.encode(video, plan, draw=mode))
    out = {"moments": moments, "latent_mode": model.normalise(latents)}
    noise = case.input("posterior_noise")
    if noise is not None:
        out["latent_sample"] = model.normalise(Posterior(moments).draw(noise))
    return out


def _middle(case: Case, model: OpenSora20) -> dict[str, Tensor]:
    """The decoder's middle; without the mask a clip is the same as one long frame."""
    hidden, middle = case.tensors["in.hidden"], model.decoder.mid_block
    block = _both(
        lambda plan: middle(hidden) if plan is None else plan.finish(middle.strips(Rows.of(hidden.clone()), plan))
    )
    unmasked = middle.attentions[0](hidden.flatten(2, 3).unsqueeze(2)).view_as(hidden)
    return {"attention": middle.attentions[0](hidden), "attention_without_mask": unmasked, "mid_block": block}


# -- DC-AE -----------------------------------------------------------------------------------------------------------


def dc_ae(case: Case) -> OpenSora20HighCompression:
    """The network a case describes, with its weights."""
    settings = case.config
    config = DcAeConfig(
        widths=tuple(settings["widths"]), encoder_blocks=tuple(settings["edepth"]),
        decoder_blocks=tuple(settings["ddepth"]), latent_channels=settings["latent"],
        scale=settings.get("scaling_factor") or 1.0,
    )  # fmt: skip
    tiling = Tiling(
        spatial=settings.get("use_spatial_tiling", False), temporal=settings.get("use_temporal_tiling", False),
        size=settings.get("spatial_tile_size", DC_AE_TILING.size),
        frames=settings.get("temporal_tile_size", DC_AE_TILING.frames),
        overlap=settings.get("tile_overlap_factor", DC_AE_TILING.overlap),
    )  # fmt: skip
    return _filled(OpenSora20HighCompression(config, tiling=tiling), case)


@runs_cases(_family("v2-dc-ae"))
def high_compression(case: Case) -> dict[str, Tensor]:
    """Latents of a clip, pixels of latents, or single blocks."""
    model = dc_ae(case)
    if case.input("latent") is not None:
        return _pixels(case, model)
    if case.input("evit_hidden") is not None:
        return _blocks(case, model)
    video = _video(case)
    return {"latent": model.normalise(_both(lambda plan: model.encode(video, plan)))}


def _blocks(case: Case, model: OpenSora20HighCompression) -> dict[str, Tensor]:
    """The first blocks of a kind, with one frame, too."""
    deep, wide, narrow = (case.tensors[f"in.{name}_hidden"] for name in ("evit", "res", "up"))
    attention: AttentionBlock = model.encoder.stages[3].op_list[0]
    down, up = model.encoder.stages[3].op_list[-1], model.decoder.stages[3].op_list[0]
    inner = attention.context_module.main
    return {
        "evit_block": _layer(attention, deep),
        "lite_mla": inner(deep),
        "res_block": _layer(model.encoder.stages[0].op_list[0], wide),
        "down_block": _layer(down, deep),
        "down_block_single_frame": _layer(down, deep[:, :, :1]),
        "down_conv": down.main(deep),
        "down_shortcut": down.shortcut(deep),
        "up_block": _layer(up, narrow),
        "up_block_single_frame": _layer(up, narrow[:, :, :1]),
        "up_shortcut": up.shortcut(narrow),
    }


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    """One block, plainly and by strips, which may overwrite what they are given."""
    return _both(lambda plan: layer(x) if plan is None else plan.finish(layer.strips(Rows.of(x.clone()), plan)))
