"""The video autoencoders of releases 1.2 and 1.3: whole pipelines and their stages.

Every case is computed twice, plainly and by strips, and both must equal what was recorded. What a case decodes are its
recorded latents, as its description says, so that no rounding of encoding is decoded as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.causal import CausalConfig, CausalDecoder, CausalEncoder
from opensora.opensora_models.vae.distribution import Draw, Posterior, mode
from opensora.opensora_models.vae.image import ImageAutoencoder, ImageConfig
from opensora.opensora_models.vae.layers import CausalConv3d
from opensora.opensora_models.vae.statistics import V12_IMAGE_SCALE
from opensora.opensora_models.vae.strips import Strips
from opensora.opensora_models.vae.temporal import TemporalAutoencoder, TemporalConfig

from ..runner import Case, Outputs, fill_by_rule, runs_cases

# Strips of one row's size: the engine rounds up to its least number of rows, so every layer is cut where it can be.
SMALL_STRIPS = Strips(strip_bytes=1, lean=True, images=2)
# What the original assumes whatever the depth of its decoder is.
FRAMES_PER_LATENT = 4

Settings = dict[str, Any]


class Ways:
    """Outputs computed plainly and once more by small strips, whose statistics are never kept in float64."""

    def __init__(self, case: Case) -> None:
        self.recorded = case.expected
        self.plans = [SMALL_STRIPS] if case.dtype != torch.float64 else []
        self.plain: dict[str, Tensor] = {}
        self.strips: dict[str, Tensor] = {}

    def add(self, name: str, compute: Callable[[Strips | None], Tensor]) -> Tensor:
        """Compute one output both ways; returns the recorded one, or the plain one where none is."""
        self.plain[name] = compute(None)
        if name not in self.recorded:
            return self.plain[name]
        for plan in self.plans:
            self.strips[name] = compute(plan)
        return self.recorded[name].to(self.plain[name])

    @property
    def both(self) -> list[Outputs]:
        return [self.plain, self.strips]


def stage(version: str, *roots: str) -> Callable[[Case], bool]:
    """Cases of one release, recorded from one of these classes of the original."""
    return lambda case: case.info.get("version") == version and case.root in roots


def filled(module: nn.Module, case: Case, prefix: str = "") -> Any:
    """The module with the weights of the rule, in the case's dtype, for evaluation."""
    fill_by_rule(module, case, lambda key: prefix + key)
    return module.to(case.dtype).eval()


def refuse(settings: Settings, **released: Any) -> None:
    """ValueError where a setting that is fixed here was recorded with another value."""
    for name, value in released.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} {settings[name]!r} is not implemented, only {value!r}")


def _video(case: Case, name: str) -> Tensor | None:
    value = case.input(name)
    return None if value is None else value.to(case.dtype)


def _frame_numbers(case: Case, otherwise: int) -> list[int]:
    """The numbers of frames a clip is decoded with: ``num_frames`` of the call, and those in the outputs' names."""
    called = (case.info.get("call") or {}).get("num_frames")
    named = [int(found[1]) for name in case.expected if (found := re.fullmatch(r"dec_nf(\d+)", name))]
    return [*(called if isinstance(called, list) else [otherwise if called is None else called]), *named]


# -- Release 1.2 -----------------------------------------------------------------------------------------------------


def _image(settings: Settings) -> ImageAutoencoder:
    refuse(settings, act_fn="silu", mid_block_add_attention=True, use_quant_conv=True, use_post_quant_conv=True)
    widths = tuple(settings["block_out_channels"])
    model = ImageAutoencoder(
        ImageConfig(
            widths=widths, layers=settings.get("layers_per_block", 1),
            latent_channels=settings.get("latent_channels", 4), groups=settings.get("norm_num_groups", 32),
        )
    )  # fmt: skip
    inputs, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if (inputs, outputs) != (3, 3):
        model.encoder.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        model.decoder.conv_out = nn.Conv2d(widths[0], outputs, 3, padding=1)
    return model


def _temporal(settings: Settings) -> TemporalAutoencoder:
    wide, narrow = settings.get("latent_embed_dim", 4), settings.get("embed_dim", 4)
    model = TemporalAutoencoder(
        TemporalConfig(
            channels=settings.get("in_out_channels", 4), latent_channels=wide,
            filters=settings.get("filters", 128), blocks=settings.get("num_res_blocks", 4),
            multipliers=tuple(settings.get("channel_multipliers", (1, 2, 2, 4))),
            downsample=tuple(settings.get("temporal_downsample", (True, True, False))),
            groups=settings.get("num_groups", 32),
        )
    )  # fmt: skip
    if wide != narrow:  # in every release they are the same
        model.quant_conv = CausalConv3d(2 * wide, 2 * narrow, 1)
        model.post_quant_conv = CausalConv3d(narrow, wide, 1)
    return model


def _activation(settings: Settings) -> AbstractContextManager[Any]:
    """The temporal stage's other activation, which no release has."""
    name = settings.get("activation_fn", "swish")
    if name not in ("swish", "relu"):
        raise ValueError(f"activation_fn {name!r} is unknown to the original, too")
    return mock.patch.object(F, "silu", F.relu) if name == "relu" else nullcontext()


@runs_cases(stage("v1.2", "VAE_Temporal"), "vae")
def temporal(case: Case) -> dict[str, Tensor]:
    """The temporal stage: moments, mode and decoding with several lengths."""
    with _activation(case.config):
        model, out = filled(_temporal(case.config), case), {}
        z, x = _video(case, "z"), _video(case, "x")
        frames = 1 if x is None else x.shape[2]
        if z is None:
            out["moments"] = model.moments(x)
            out["mode"] = Posterior(out["moments"]).mean
            z = case.expected.get("mode", out["mode"]).to(case.dtype)
        for number in _frame_numbers(case, frames):
            out[f"dec_nf{number}"] = model.decode(z, number)
        return {**out, "dec": out[f"dec_nf{_frame_numbers(case, frames)[0]}"]}


@runs_cases(stage("v1.2", "VideoAutoencoderKL"), "vae")
def spatial(case: Case) -> list[Outputs]:
    """The image stage, frames folded into the batch."""
    model, ways = filled(_image(case.config["diffusers_autoencoder_kl"]), case, "module."), Ways(case)
    x, z = _video(case, "x"), _video(case, "z")
    given = z if x is None else x
    if given is None:
        raise ValueError("the case has neither in.x nor in.z")

    def unfolded(values: Tensor) -> Tensor:
        return values.unflatten(0, (given.shape[0], given.shape[2])).transpose(1, 2)

    flat = given.transpose(1, 2).flatten(0, 1)
    latents = flat / V12_IMAGE_SCALE
    if x is not None:
        ways.add("moments", lambda plan: model.moments(flat, plan))
        scaled = ways.add("latent", lambda plan: unfolded(Posterior(model.moments(flat, plan)).mean * V12_IMAGE_SCALE))
        latents = scaled.transpose(1, 2).flatten(0, 1) / V12_IMAGE_SCALE
    ways.add("rec", lambda plan: unfolded(model.decode(latents, plan)))
    return ways.both


class _StoredNoise:
    """Hands out the recorded noise in the order a run of ours asks for it.

    The original draws for all frames of all clips before the first chunk; ours works group by group. ``slices``: the
    frames of each group, one slice over all of them where the whole clip is taken at once.
    """

    def __init__(self, case: Case, batch: int, slices: list[slice]) -> None:
        images = case.need("noise_spatial").unflatten(0, (batch, -1))
        self.images = torch.cat([images[:, part].flatten(0, 1) for part in slices])
        chunks = {int(number): value for number, value in case.with_prefix("in.noise_temporal_").items()}
        self.chunks: Iterator[Tensor] = iter(chunks[number] for number in sorted(chunks))
        self.done = 0

    def __call__(self, posterior: Posterior) -> Tensor:
        if posterior.moments.ndim == 5:
            return posterior.draw(next(self.chunks))
        self.done += posterior.moments.shape[0]
        return posterior.draw(self.images[self.done - posterior.moments.shape[0] : self.done])


def _pipeline12(case: Case) -> OpenSora12:
    config = case.config
    with torch.device("meta"):  # both stages are replaced
        model = OpenSora12(group_frames=config.get("micro_frame_size"))
    model.spatial_vae.module = _image(config["vae_2d"])
    model.temporal_vae = _temporal(config["vae_temporal"])
    model.frames_per_latent = model.temporal_vae.config.factor
    for name, otherwise in (("shift", 0.0), ("scale", 1.0)):
        value = torch.tensor(config.get(name, otherwise))
        setattr(model, name, value.reshape(1, -1, 1, 1, 1) if value.ndim else value)
    return filled(model, case)


@runs_cases(stage("v1.2", "VideoAutoencoderPipeline"), "vae")
def pipeline12(case: Case) -> list[Outputs]:
    """The whole pipeline in mode, with recorded noise, with odd frame numbers, and its training forward."""
    with _activation(case.config["vae_temporal"]):
        model, ways, training = _pipeline12(case), Ways(case), bool(case.config.get("cal_loss"))
        z, x = _video(case, "z"), _video(case, "x")
        if z is not None:
            latents = z if training else model.denormalise(z)
            numbers = _frame_numbers(case, model.frames_of(z.shape[2]))
            for number in numbers:
                ways.add(f"dec_nf{number}", partial(model.decode, latents, number))
            ways.add("rec", partial(model.decode, latents, numbers[0]))
            return ways.both
        if x is None:
            raise ValueError("the case has neither in.x nor in.z")
        _encoded12(case, model, x, ways, training)
        return ways.both


def _encoded12(case: Case, model: OpenSora12, x: Tensor, ways: Ways, training: bool) -> None:
    """Everything that begins with encoding; in training there is no normalisation, and the last group's posterior."""
    last: list[Tensor] = []

    def draw(slices: list[slice]) -> Draw:
        take: Draw = mode if case.input("noise_spatial") is None else _StoredNoise(case, x.shape[0], slices)

        def kept(posterior: Posterior) -> Tensor:
            last[:] = [posterior.moments]
            return take(posterior)

        return kept

    def encoded(latents: Tensor) -> Tensor:
        return latents if training else model.normalise(latents)

    whole, groups = [slice(None)], model.encode_slices(x.shape[2])
    ways.add("x_z", lambda plan: model.spatial_vae.encode(x, plan, draw(whole)))
    z = ways.add("z", lambda plan: encoded(model.encode(x, plan, draw=draw(groups))))
    if training:
        model.encode(x, draw=draw(groups))
        ways.plain["posterior_parameters"] = last[0]
        parts = [z[:, :, part] for part in model.decode_slices(z.shape[2])]
        size = model.group_frames or x.shape[2]
        lengths = [min(size, x.shape[2] - size * index) for index in range(len(parts))]
        images = [model.temporal_vae.decode(part, length) for part, length in zip(parts, lengths, strict=True)]
        again = ways.plain["x_z_rec"] = torch.cat(images, dim=2)
        ways.add("x_rec", lambda plan: model.spatial_vae.decode(again, plan))
        return
    latents, frames = model.denormalise(z), _frame_numbers(case, x.shape[2])[0]
    ways.add("rec", lambda plan: model.decode(latents, frames, plan))


# -- Release 1.3 -----------------------------------------------------------------------------------------------------


def _causal_config(settings: Settings, latent_channels: int) -> CausalConfig:
    """The numbers of one half, which may differ from the other's."""
    refuse(settings, resamp_with_conv=True)
    return CausalConfig(
        width=settings["ch"], multipliers=tuple(settings.get("ch_mult", (1, 2, 4, 8))),
        blocks=settings.get("num_res_blocks", 2), latent_channels=latent_channels,
        temporal_down=tuple(settings.get("down_sampling_layer", (1, 2))),
        temporal_up=tuple(settings.get("temporal_up_layers", (2, 3))),
    )  # fmt: skip


def _pipeline13(case: Case) -> OpenSora13:
    config = case.config
    decoder = config["decoder"]
    encoder = config.get("encoder") or decoder
    channels = decoder["z_channels"]
    with torch.device("meta"):  # both halves are replaced
        model = OpenSora13(
            CausalConfig(latent_channels=channels), normalization=config.get("normalization"),
            overlap=bool(config.get("temporal_overlap")),
            group_frames=config.get("micro_frame_size") if config.get("micro_batch_size") else None,
        )  # fmt: skip
    # Without double_z the encoder's own number of channels is that of mean and log variance together.
    halved = encoder.get("z_channels", channels) // (1 if encoder.get("double_z", True) else 2)
    model.encoder = CausalEncoder(_causal_config(encoder, halved), nn)
    model.decoder = CausalDecoder(_causal_config(decoder, channels), nn)
    model.decoder.extra_frames = decoder.get("temporal_downsample", FRAMES_PER_LATENT) - 1
    inputs, outputs = encoder.get("in_channels", 3), decoder.get("out_ch", 3)
    if (inputs, outputs) != (3, 3):
        model.encoder.conv_in = CausalConv3d(inputs, encoder["ch"])
        old = model.decoder.conv_out
        model.decoder.conv_out = type(old)(old.in_channels, outputs, 3, padding=old.padding)
    return filled(model, case)


@runs_cases(stage("v1.3", "OpenSoraVAE_V1_3_Pipline"), "vae")
def pipeline13(case: Case) -> list[Outputs]:
    """The whole pipeline with and without groups, overlap and normalisation."""
    model, ways = _pipeline13(case), Ways(case)
    x, z = _video(case, "x"), _video(case, "z")
    if x is not None:
        groups = model.encode_slices(x.shape[2])

        def moments(plan: Strips | None) -> Tensor:
            return torch.cat([model.moments(x[:, :, part], plan) for part in groups], dim=2)

        def latents_by(plan: Strips | None) -> Tensor:
            """With noise for the whole clip, which the machine draws group by group, from all moments at once."""
            noise = case.input("noise")
            return model.encode(x, plan) if noise is None else Posterior(moments(plan)).draw(noise)

        ways.add("moments", moments)
        z = ways.add("z", lambda plan: model.normalise(latents_by(plan)))
    if z is None:
        raise ValueError("the case has neither in.x nor in.z")
    latents = model.denormalise(z)
    for number, part in enumerate(model.decode_slices(z.shape[2])):
        if f"chunk_{number}" in case.expected:
            ways.add(f"chunk_{number}", partial(model.decode_group, latents[:, :, part], 0))
    if "rec" in case.expected:
        ways.add("rec", lambda plan: model.decode(latents, None, plan))
    return ways.both
