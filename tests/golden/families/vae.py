"""The video autoencoders of releases 1.2 and 1.3: whole pipelines, stages and single blocks.

Every case is computed twice, plainly and by strips, and the two must agree before the result is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from opensora.opensora_models.frames import latent_size
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.blocks import ResidualBlock, Upsample3d
from opensora.opensora_models.vae.causal import CausalConfig, causal_attention
from opensora.opensora_models.vae.distribution import Posterior, mode
from opensora.opensora_models.vae.image import ImageAutoencoder, ImageConfig
from opensora.opensora_models.vae.layers import CausalConv3d, Downsample2d, Downsample3d, Upsample2d
from opensora.opensora_models.vae.statistics import V12_IMAGE_SCALE
from opensora.opensora_models.vae.strips import Strips
from opensora.opensora_models.vae.temporal import TemporalAutoencoder, TemporalConfig

from ..runner import Case, Row, fill_by_rule, runs_cases, runs_table

# Strips of one row's size: the engine rounds up to its least number of rows, so every layer is cut where it can be.
SMALL_STRIPS = Strips(strip_bytes=1, lean=True, images=2)
STRIPS_TOLERANCE = 2e-5


def _version(version: str, *roots: str) -> Callable[[Case], bool]:
    return lambda case: (
        case.family == "vae" and case.info.get("version") == version and case.info.get("root_module") in roots
    )


def _both(compute: Callable[[Strips | None], Tensor]) -> Tensor:
    """The plain result, after checking that small strips give the same."""
    plain, strips = compute(None), compute(SMALL_STRIPS)
    torch.testing.assert_close(strips, plain, atol=STRIPS_TOLERANCE, rtol=1e-4)
    return plain


def _filled(module: nn.Module, case: Case, prefix: str = "") -> Any:
    fill_by_rule(module, case, lambda key: prefix + key)
    return module.eval()


def _image_config(config: dict[str, Any]) -> ImageConfig:
    return ImageConfig(
        widths=tuple(config["block_out_channels"]), layers=config["layers_per_block"],
        latent_channels=config["latent_channels"], groups=config["norm_num_groups"],
    )  # fmt: skip


def _temporal_config(config: dict[str, Any]) -> TemporalConfig:
    return TemporalConfig(
        channels=config["in_out_channels"], latent_channels=config["embed_dim"], filters=config["filters"],
        blocks=config["num_res_blocks"], multipliers=tuple(config["channel_multipliers"]),
        downsample=tuple(config["temporal_downsample"]), groups=config["num_groups"],
    )  # fmt: skip


@runs_cases(_version("v1.2", "VAE_Temporal"))
def temporal(case: Case) -> dict[str, Tensor]:
    """v1.2's temporal stage: moments, mode and decoding with several lengths."""
    model = _filled(TemporalAutoencoder(_temporal_config(case.config)), case)
    z = case.input("z")
    if z is not None:
        return {f"dec_nf{n}": model.decode(z, n) for n in case.info["call"]["num_frames"]}
    moments = model.moments(case.input("x"))
    latents = Posterior(moments).mean
    return {"moments": moments, "mode": latents, "dec": model.decode(latents, case.info["call"]["num_frames"])}


@runs_cases(_version("v1.2", "VideoAutoencoderKL"))
def spatial(case: Case) -> dict[str, Tensor]:
    """v1.2's image stage, frames folded into the batch."""
    model = _filled(ImageAutoencoder(_image_config(case.config["diffusers_autoencoder_kl"])), case, "module.")
    x = case.input("x")
    frames = x.transpose(1, 2).flatten(0, 1)
    moments = _both(lambda plan: model.moments(frames, plan))
    latents = Posterior(moments).mean * V12_IMAGE_SCALE
    pixels = _both(lambda plan: model.decode(latents / V12_IMAGE_SCALE, plan))

    def unfolded(values: Tensor) -> Tensor:
        return values.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    return {"moments": moments, "latent": unfolded(latents), "rec": unfolded(pixels)}


class _StoredNoise:
    """Hands out the recorded noise: the image stage's frame by frame, the temporal stage's chunk by chunk."""

    def __init__(self, case: Case) -> None:
        self.images = case.input("noise_spatial")
        self.chunks: Iterator[Tensor] = iter(
            value for _, value in sorted(case.with_prefix("in.noise_temporal_").items())
        )
        self.done = 0

    def __call__(self, posterior: Posterior) -> Tensor:
        if posterior.moments.ndim == 5:
            return posterior.draw(next(self.chunks))
        count = posterior.moments.shape[0]
        self.done += count
        return posterior.draw(self.images[self.done - count : self.done])


@runs_cases(_version("v1.2", "VideoAutoencoderPipeline"))
def pipeline12(case: Case) -> dict[str, Tensor]:
    """The whole v1.2 pipeline in mode, with recorded noise, and with odd frame numbers."""
    config = case.config
    model: OpenSora12 = _filled(
        OpenSora12(
            _image_config(config["vae_2d"]), _temporal_config(config["vae_temporal"]),
            group_frames=config["micro_frame_size"],
        ),
        case,
    )  # fmt: skip
    z = case.input("z")
    if z is not None:
        frames = case.info["call"]["num_frames"]
        return {f"dec_nf{n}": _both(partial(model.decode, model.denormalise(z), n)) for n in frames}
    x = case.input("x")
    if config["cal_loss"]:
        return _training_forward(model, x)
    noisy = case.input("noise_spatial") is not None
    latents = _both(lambda plan: model.encode(x, plan, draw=_StoredNoise(case) if noisy else mode))
    images = model.spatial_vae.encode(x, None, _StoredNoise(case) if noisy else mode)
    frames = case.info["call"]["num_frames"]
    return {
        "x_z": images,
        "z": model.normalise(latents),
        "rec": _both(lambda plan: model.decode(latents, frames, plan)),
    }


def _training_forward(model: OpenSora12, x: Tensor) -> dict[str, Tensor]:
    images = model.spatial_vae.encode(x, None, mode)
    moments = model.temporal_vae.moments(images)
    latents = Posterior(moments).mean
    again = model.temporal_vae.decode(latents, x.shape[2])
    return {
        "x_z": images, "posterior_parameters": moments, "z": latents, "x_z_rec": again,
        "x_rec": model.spatial_vae.decode(again, None),
    }  # fmt: skip


def _causal_config(config: dict[str, Any]) -> CausalConfig:
    encoder, decoder = config.get("encoder", {}), config["decoder"]
    return CausalConfig(
        width=decoder["ch"], multipliers=tuple(decoder["ch_mult"]), blocks=decoder["num_res_blocks"],
        latent_channels=decoder["z_channels"], temporal_down=tuple(encoder.get("down_sampling_layer", (1, 2))),
        temporal_up=tuple(decoder["temporal_up_layers"]),
    )  # fmt: skip


@runs_cases(_version("v1.3", "OpenSoraVAE_V1_3_Pipline"))
def pipeline13(case: Case) -> dict[str, Tensor]:
    """The whole v1.3 pipeline with and without groups, overlap and normalisation."""
    config = case.config
    model: OpenSora13 = _filled(
        OpenSora13(
            _causal_config(config), normalization=config["normalization"], overlap=config["temporal_overlap"],
            group_frames=config["micro_frame_size"] if config["micro_batch_size"] else None,
        ),
        case,
    )  # fmt: skip
    z = case.input("z")
    if z is not None:
        chunks = {
            f"chunk_{k}": _both(lambda plan, part=part: model.decode_group(z[:, :, part], 17, plan))
            for k, part in enumerate(model.decode_slices(z.shape[2]))
        }
        return {**chunks, "rec": _both(lambda plan: model.decode(z, None, plan))}
    x = case.input("x")
    moments = torch.cat([model.moments(x[:, :, part], None) for part in model.encode_slices(x.shape[2])], dim=2)
    noise = case.input("noise")
    latents = _both(lambda plan: model.encode(x, plan)) if noise is None else Posterior(moments).draw(noise)
    out = {"moments": moments, "z": model.normalise(latents)}
    if "rec" in case.expected:
        out["rec"] = _both(lambda plan: model.decode(model.denormalise(out["z"]), None, plan))
    return out


def _residual(config: dict[str, Any]) -> ResidualBlock:
    return ResidualBlock(
        config["in_channels"], config["out_channels"], convolution=CausalConv3d, groups=32, eps=1e-6,
        shortcut="nin_shortcut",
    )  # fmt: skip


# Blocks by the original's class names.
_BLOCKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Resnet3DBlock": _residual,
    "AttnBlock": lambda config: causal_attention(config["in_channels"], 32),
    "Downsample2D": lambda config: Downsample2d(config["in_channels"]),
    "Downsample3D": lambda config: Downsample3d(config["in_channels"]),
    "Upsample2D": lambda config: Upsample2d(config["in_channels"]),
    "Upsample3D": lambda config: Upsample3d(config["in_channels"], groups=32),
    "CausalConv3dPlainAR": lambda config: CausalConv3d(
        config["chan_in"], config["chan_out"], config["kernel_size"]
    ),
}  # fmt: skip


@runs_cases(_version("v1.3", *_BLOCKS))
def block(case: Case) -> dict[str, Tensor]:
    """Single v1.3 blocks."""
    model = _filled(_BLOCKS[case.info["root_module"]](case.config), case)
    y = model(case.input("x"))
    return {name: y for name in case.expected}


@runs_cases(_version("v1.3", "Conv3d"))
def convolution_in_tiles(case: Case) -> dict[str, Tensor]:
    """The original's tiled convolution equals the plain one, so ours is the plain one, computed by strips."""
    config = case.config
    conv = _filled(nn.Conv3d(config["in_channels"], config["out_channels"], config["kernel_size"]), case)
    x = case.input("x")
    rows = x.shape[-2] - 2
    strips = [conv(x[..., first : min(first + 4, rows) + 2, :]) for first in range(0, rows, 4)]
    return {"plain": torch.cat(strips, dim=-2)}


@cache
def _grouped(version: str, group_frames: int | None, overlap: bool) -> OpenSora12 | OpenSora13:
    with torch.device("meta"):
        if version == "1.2":
            return OpenSora12(ImageConfig(widths=(32,) * 4), TemporalConfig(filters=32), group_frames=group_frames)
        return OpenSora13(CausalConfig(width=32), group_frames=group_frames, overlap=overlap)


def _latent_count(version: str, row: dict[str, Any], frames: int) -> int:
    """Latent frames by the groups of our autoencoder; 1.3's recorded rule ignores a group that is not full."""
    model = _grouped(version, row["micro_frame_size"], row.get("temporal_overlap", False))
    if version == "1.2" or model.group_frames is None or frames == 1:
        return model.latents_of(frames)
    full = [part for part in model.encode_slices(frames) if part.stop - part.start == model.group_frames]
    return sum(model.latents_of(part.stop - part.start) for part in full)


def _size_rows(version: str, rows: list[dict[str, Any]]) -> Iterator[Row]:
    """All rows with a known axis; an unknown one is only filled in to make the call."""
    for row in rows:
        known = [size is not None for size in row["input"]]
        if not any(known):
            continue
        frames, height, width = (size or 17 for size in row["input"])
        size = latent_size(version, frames, height, width)
        label = f"{row['input']} in groups of {row['micro_frame_size']}"
        ways = [(_latent_count(version, row, frames), *size[1:])]
        if row["micro_frame_size"] == 17 and row.get("temporal_overlap", True):
            ways.append(size)
        for got in ways:
            yield Row(label, [value if given else None for value, given in zip(got, known, strict=True)], row["latent"])


@runs_table("latent_size", "v1.2")
def latent_size_12(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """v1.2's size function."""
    return _size_rows("1.2", rows)


@runs_table("latent_size", "v1.3")
def latent_size_13(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """v1.3's size function."""
    return _size_rows("1.3", rows)
