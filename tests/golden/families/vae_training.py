"""What the autoencoders are trained with beside losses: discriminators, the 2-D autoencoder, chunked layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from golden.runner import Case, Outputs, Row, fill_by_rule, runs_cases, runs_table
from opensora.opensora_models.vae import autoencoder2d, chunked_conv
from opensora.training import discriminator

from .vae_losses import Settings, release, root

# -- Discriminators --------------------------------------------------------------------------------------------------


@runs_cases(root("NLayerDiscriminator", "NLayerDiscriminator3D"), "vae")
def patch_discriminator(case: Case) -> dict[str, Tensor]:
    """Logits, and the first batch norm's statistics after the call."""
    settings, plane = case.config, case.root == "NLayerDiscriminator"
    if settings.get("use_actnorm"):
        raise ValueError("use_actnorm is not implemented by the original, too")
    kind: Any = "1.2 2d" if plane else release(case)
    network = discriminator.PatchDiscriminator(
        discriminator.released_config(
            kind, channels=settings.get("input_nc", 3 if plane else 1), width=settings.get("ndf", 64),
            blocks=settings.get("n_layers"), dropout=settings.get("dropout", 0.3),
        )
    )  # fmt: skip
    fill_by_rule(network, case)
    network.train(settings.get("mode") == "train")
    logits = network(case.need("x"))
    norm = next(layer for layer in network.main if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)))
    return {"logits": logits, "first_bn_running_mean": norm.running_mean, "first_bn_running_var": norm.running_var}


# -- 2-D autoencoder of 2.0 ------------------------------------------------------------------------------------------


@runs_cases(lambda case: root("AutoEncoder")(case) and release(case) == "2.0", "vae")
def autoencoder_2d(case: Case) -> dict[str, Tensor]:
    """Moments, latents and reconstruction of the picture autoencoder, or decoding alone."""
    settings = case.config
    defaults = autoencoder2d.Autoencoder2dConfig()
    network = autoencoder2d.Autoencoder2d(
        autoencoder2d.Autoencoder2dConfig(
            in_channels=settings.get("in_channels", 3), out_channels=settings.get("out_ch", 3),
            width=settings.get("ch", defaults.width),
            multipliers=tuple(settings.get("ch_mult", defaults.multipliers)),
            blocks=settings.get("num_res_blocks", defaults.blocks),
            latent_channels=settings.get("z_channels", defaults.latent_channels),
            scale=settings.get("scale_factor", defaults.scale), shift=settings.get("shift_factor", defaults.shift),
        )
    )  # fmt: skip
    fill_by_rule(network, case)
    if case.input("z") is not None:
        return {"rec": network.decode(case.need("z"))}
    video = case.need("x")
    latents = network.encode(video, case.input("noise"))
    decoded = network.decode(case.expected.get("z", latents))
    return {"params": network.posterior(video).moments, "z": latents, "rec": decoded}


@runs_cases(lambda case: root("AttnBlock", "ResnetBlock")(case) and release(case) == "2.0", "vae")
def blocks_2d(case: Case) -> dict[str, Tensor]:
    """One attention or residual block."""
    channels = case.config["in_channels"]
    if case.root == "AttnBlock":
        block: nn.Module = autoencoder2d.attention_block(channels)
    else:
        block = autoencoder2d.residual_block(channels, case.config.get("out_channels") or channels)
    fill_by_rule(block, case)
    return dict.fromkeys(case.expected, block(case.need("x")))


# -- Chunked convolution and padding ---------------------------------------------------------------------------------


def _layer_settings(settings: Settings) -> Settings:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


@runs_cases(root("ChannelChunkConv3d"), "vae")
def channel_chunks(case: Case) -> list[Outputs]:
    """Every recorded limit must give the recorded chunk counts and, chunked or not, the plain result."""
    x = case.need("x")
    layer = chunked_conv.ChannelChunkConv3d(**_layer_settings(case.config))
    fill_by_rule(layer, case)
    plain = layer(x)
    ways = [plain]
    for run in case.info.get("chunk_runs") or ():
        layer.limit = run["limit"]
        counts = [chunked_conv.chunks_for(t.numel(), t.shape[1], run["limit"]) for t in (x, plain)]
        if counts != [run["n_in_chunks"], run["n_out_chunks"]]:
            raise ValueError(f"limit {run['limit']}: {counts} chunks of inputs and outputs")
        if (x.numel() // x.shape[0] >= run["limit"]) != run["taken"]:
            raise ValueError(f"limit {run['limit']}: taken {not run['taken']}")
        ways += [layer(x), _as_function(layer, x)]
    return [dict.fromkeys(case.expected, way) for way in ways]


def _as_function(layer: chunked_conv.ChannelChunkConv3d, x: Tensor) -> Tensor:
    return chunked_conv.chunked_conv3d(
        x, layer.weight, layer.bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        limit=layer.limit,
    )  # fmt: skip


@runs_cases(root("PadConv3D", "ChannelChunkPadConv3D"), "vae")
def padded_convolution(case: Case) -> dict[str, Tensor]:
    """The padded 3x3x3 convolution."""
    settings = case.config
    kernel = settings.get("kernel_size", 3)
    if isinstance(kernel, list):
        if len(set(kernel)) > 1:
            raise ValueError(f"kernel_size {kernel} is not a cube, which the original needs, too")
        kernel = kernel[0]
    layer = chunked_conv.PadConv3d(settings["in_channels"], settings["out_channels"], kernel)
    fill_by_rule(layer, case)
    return dict.fromkeys(case.expected, layer(case.need("x")))


@runs_table("chunk_counts", "cases")
def chunk_counts(rows: list[list[Any]]) -> Iterator[Row]:
    """The rule for the number of chunks."""
    for wanted, channels, recorded in rows:
        try:
            got: Any = chunked_conv.divisible_chunks(wanted, channels)
        except ZeroDivisionError:
            got = "ZeroDivisionError"
        yield Row(f"{wanted} of {channels}", got, recorded)
