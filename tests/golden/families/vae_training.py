"""The training side of the autoencoders: Gaussian, discriminators, losses, LPIPS, 2-D autoencoder, chunked layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.runner import Case, Row, fill_by_rule, runs_cases, runs_table
from opensora.opensora_models.vae import autoencoder2d, chunked_conv
from opensora.training import adversarial, discriminator, reconstruction
from opensora.training.lpips import LPIPS
from opensora.training.posterior import TrainingPosterior

Tensors = dict[str, Tensor]


def scalar(value: Tensor | float) -> Tensor:
    """Scalars are recorded with shape [1]."""
    return torch.as_tensor(value).reshape(1)


def needed(case: Case, name: str) -> Tensor:
    """The input tensor of this name; it must be there."""
    value = case.input(name)
    assert value is not None, f"{case.name} has no in.{name}"
    return value


def family(*root_modules: str) -> Callable[[Case], bool]:
    """Cases recorded from one of these classes of the original."""
    return lambda case: case.family == "vae" and case.info.get("root_module") in root_modules


def version(case: Case) -> str:
    """Release number without the v."""
    return case.info["version"].removeprefix("v")


# -- Gaussian --------------------------------------------------------------------------------------------------------


def posterior(case: Case, name: str, *, deterministic: bool = False) -> TrainingPosterior:
    """Our Gaussian over the moments ``in.<name>``, reduced as in the case's release."""
    return TrainingPosterior(needed(case, name), per_frame=version(case) == "2.0", deterministic=deterministic)


@runs_cases(family("DiagonalGaussianDistribution"))
def gaussian(case: Case) -> Tensors:
    """Mean, deviation, divergences and likelihood, also clamped and deterministic."""
    ours, point = posterior(case, "params"), posterior(case, "params", deterministic=True)
    sample = ours.draw(needed(case, "noise"))
    return {
        "mean": ours.mean,
        "mode": ours.mean,
        "logvar": ours.log_variance,
        "std": ours.std,
        "var": ours.variance,
        "sample": sample,
        "kl": ours.kl(),
        "kl_other": ours.kl(posterior(case, "other")),
        "nll_of_sample": ours.nll(sample),
        "extreme_logvar": posterior(case, "params_extreme").log_variance,
        "deterministic_std": point.std,
        "deterministic_kl": point.kl(),
    }


# -- Discriminators --------------------------------------------------------------------------------------------------


@runs_cases(family("NLayerDiscriminator", "NLayerDiscriminator3D"))
def patch_discriminator(case: Case) -> Tensors:
    """Logits, and the first batch norm's statistics after the call."""
    settings = case.config
    release: Any = "1.2 2d" if case.info["root_module"] == "NLayerDiscriminator" else version(case)
    network = discriminator.PatchDiscriminator(
        discriminator.released_config(
            release, channels=settings["input_nc"], width=settings["ndf"], blocks=settings["n_layers"],
            dropout=settings.get("dropout", 0.0),
        )
    )  # fmt: skip
    fill_by_rule(network, case)
    network.train(settings["mode"] == "train")
    logits = network(needed(case, "x"))
    norm = next(layer for layer in network.main if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)))
    return {"logits": logits, "first_bn_running_mean": norm.running_mean, "first_bn_running_var": norm.running_var}


# -- Adversarial losses ----------------------------------------------------------------------------------------------


@runs_cases(lambda case: family("functions")(case) and case.name.endswith("elementary_losses"))
def elementary(case: Case) -> Tensors:
    """Every scalar formula; the step thresholds are checked on the way."""
    real, made = needed(case, "real"), needed(case, "fake")
    running_real, running_made = needed(case, "ema")
    used, count = reconstruction.perplexity(needed(case, "indices"), case.config["n_embed"])
    for row in case.info["adopt_weight_table"]:
        got = adversarial.adopt_weight(row["weight"], row["global_step"], row["threshold"], row["value"])
        assert got == row["result"], f"adopt_weight {row}: {got}"
    return {
        "hinge_d": scalar(adversarial.hinge(real, made)),
        "vanilla_d": scalar(adversarial.vanilla(real, made)),
        "wgan_d": scalar(adversarial.wasserstein(real, made)),
        "sigmoid_ce_ones": adversarial.sigmoid_cross_entropy(real, torch.ones_like(real)),
        "sigmoid_ce_zeros": adversarial.sigmoid_cross_entropy(real, torch.zeros_like(real)),
        "lecam": scalar(adversarial.lecam(real.mean(), made.mean(), running_real, running_made)),
        "gradient_penalty": scalar(penalty(case)),
        "perplexity": scalar(used),
        "cluster_use": scalar(count),
        "l1": (real - made).abs(),
        "l2": (real - made).square(),
        "batch_mean_l1": scalar(reconstruction.batch_mean((real - made).abs())),
    }


def penalty(case: Case) -> Tensor:
    """Gradient penalty of the small network the case describes."""
    with torch.enable_grad():
        images = needed(case, "images").clone().requires_grad_(True)
        return adversarial.gradient_penalty(images, torch.tanh(F.conv3d(images, needed(case, "gp_w")))).detach()


@runs_cases(family("AdversarialLoss", "GeneratorLoss"))
def generator_loss(case: Case) -> Tensors:
    """Weighted and plain generator terms for each recorded setting."""
    out: Tensors = {}
    with torch.enable_grad():
        last_layer = needed(case, "W").clone().requires_grad_(True)
        again = F.conv3d(needed(case, "h"), last_layer)
        video = needed(case, "video")
        nll = (video - again).abs().sum() / video.shape[0]
        logits = F.conv3d(again, needed(case, "D"))
        for index, row in enumerate(case.config):
            loss = generator_of(row["cfg"], version(case))
            weighted, plain = loss(logits, nll, last_layer, row["global_step"])
            balance = adversarial.adaptive_weight(nll, adversarial.generator_term(logits), last_layer)
            out |= {f"weighted_{index}": scalar(weighted.detach()), f"g_loss_{index}": scalar(plain.detach())}
            out[f"d_weight_{index}"] = scalar(balance * recorded_factor(row["cfg"], version(case)))
    return out | {"nll": scalar(nll.detach()), "logits_fake": logits.detach()}


def recorded_factor(settings: dict[str, Any], release: str) -> float:
    """The recorded ``d_weight`` contains the generator weight in every release."""
    return generator_of(settings, release).weight


def generator_of(settings: dict[str, Any], release: str) -> adversarial.GeneratorLoss:
    """Settings carry each release's own names; 1.2 starts at step 50001 unless told otherwise."""
    if release == "1.2":
        return adversarial.GeneratorLoss(
            start=settings.get("discriminator_start", 50001), factor=settings.get("discriminator_factor", 1.0),
            weight=settings.get("generator_factor", 0.5), kind=settings.get("generator_loss_type", "non-saturating"),
        )  # fmt: skip
    start = settings.get("gen_start", settings.get("disc_start", adversarial.DISCRIMINATOR_START))
    return adversarial.GeneratorLoss(start, settings.get("disc_factor", 1.0), settings.get("disc_weight", 0.5))


@runs_cases(family("DiscriminatorLoss"))
def discriminator_loss(case: Case) -> Tensors:
    """Discriminator and LeCam terms for each recorded setting."""
    means = adversarial.LogitMeans(dtype=torch.float32)
    means.real, means.made = torch.tensor(0.1), torch.tensor(-0.2)  # as the case's notes say
    out: Tensors = {}
    for index, row in enumerate(case.config):
        settings = row["cfg"]
        loss = adversarial.DiscriminatorLoss(
            start=settings.get("discriminator_start", settings.get("disc_start", adversarial.DISCRIMINATOR_START)),
            factor=settings.get("disc_factor", 1.0),
            kind=settings.get("discriminator_loss_type", settings.get("disc_loss_type", "hinge")),
            lecam_weight=settings.get("lecam_loss_weight", 0.0),
        )
        value, lecam = loss(needed(case, "real"), needed(case, "fake"), row["global_step"], means)
        out |= {f"loss_{index}": scalar(value), f"lecam_{index}": scalar(lecam)}
    return out


@runs_cases(family("LeCamEMA"))
def lecam_means(case: Case) -> Tensors:
    """Running means after each of the recorded updates."""
    means = adversarial.LogitMeans(case.config["decay"], getattr(torch, case.config["dtype"]))
    history: list[tuple[Tensor, Tensor]] = []
    for real, made in zip(needed(case, "real"), needed(case, "fake"), strict=True):
        means.update(real, made)
        history.append((means.real, means.made))
    return {"ema_real": torch.stack([row[0] for row in history]), "ema_fake": torch.stack([row[1] for row in history])}


# -- VAE loss and LPIPS ----------------------------------------------------------------------------------------------


@runs_cases(family("LPIPS"))
def lpips(case: Case) -> Tensors:
    """The distance and its five terms."""
    network = LPIPS()
    fill_by_rule(network, case)
    a, b = needed(case, "a"), needed(case, "b")
    return {"lpips": network(a, b)} | {f"layer_{i}": term for i, term in enumerate(network.layers(a, b))}


@runs_cases(family("VAELoss"))
def vae_loss(case: Case) -> Tensors:
    """All returned terms, with and without the perceptual part and the posterior."""
    settings = case.config
    loss = reconstruction.AutoencoderLoss(
        settings["perceptual_loss_weight"], settings["kl_loss_weight"], settings["logvar_init"]
    )
    fill_by_rule(loss, case)
    video, again, gaussian = needed(case, "video"), needed(case, "recon"), posterior(case, "moments")
    weights = case.input("nll_weights")
    full = loss(video, again, gaussian, nll_weights=1.0 if weights is None else weights)
    plain = loss(video, again, gaussian, perceptual=False)  # recorded without nll_weights
    out = {f"{prefix}{name}": value for prefix, terms in (("", full), ("noperc_", plain)) for name, value in (
        ("nll_loss", terms.nll), ("weighted_nll_loss", terms.weighted_nll), ("weighted_kl_loss", terms.kl),
    )}  # fmt: skip
    without = loss(video, again, None)
    for prefix, terms in (("", full), ("noposterior_", without)):
        out |= {
            f"{prefix}nll_loss": terms.nll,
            f"{prefix}kl_loss": terms.kl,
            f"{prefix}recon_loss": terms.reconstruction,
            f"{prefix}perceptual_loss": terms.perceptual,
        }
    return {name: scalar(value) for name, value in out.items()}


# -- 2-D autoencoder of 2.0 ------------------------------------------------------------------------------------------


@runs_cases(lambda case: family("AutoEncoder")(case) and version(case) == "2.0")
def autoencoder_2d(case: Case) -> Tensors:
    """Moments, latents and reconstruction of the picture autoencoder."""
    settings = case.config
    network = autoencoder2d.Autoencoder2d(
        autoencoder2d.Autoencoder2dConfig(
            in_channels=settings["in_channels"], out_channels=settings["out_ch"], width=settings["ch"],
            multipliers=tuple(settings["ch_mult"]), blocks=settings["num_res_blocks"],
            latent_channels=settings["z_channels"], scale=settings["scale_factor"], shift=settings["shift_factor"],
        )
    )  # fmt: skip
    fill_by_rule(network, case)
    video = needed(case, "x")
    latents = network.encode(video, case.input("noise"))
    return {"params": network.posterior(video).moments, "z": latents, "rec": network.decode(latents)}


@runs_cases(lambda case: family("AttnBlock", "ResnetBlock")(case) and version(case) == "2.0")
def blocks_2d(case: Case) -> Tensors:
    """One attention or residual block."""
    channels = case.config["in_channels"]
    if case.info["root_module"] == "AttnBlock":
        block: nn.Module = autoencoder2d.attention_block(channels)
    else:
        block = autoencoder2d.residual_block(channels, case.config["out_channels"])
    fill_by_rule(block, case)
    return {"y": block(needed(case, "x"))}


# -- Chunked convolution and padding ---------------------------------------------------------------------------------


@runs_cases(family("ChannelChunkConv3d"))
def channel_chunks(case: Case) -> Tensors:
    """Every recorded limit must give the recorded chunk counts and, chunked or not, the plain result."""
    x = needed(case, "x")
    layer = chunked_conv.ChannelChunkConv3d(**case.config)
    fill_by_rule(layer, case)
    plain, worst = layer(x), layer(x)
    for run in case.info["chunk_runs"]:
        layer.limit = run["limit"]
        counts = [chunked_conv.chunks_for(t.numel(), t.shape[1], run["limit"]) for t in (x, plain)]
        assert counts == [run["n_in_chunks"], run["n_out_chunks"]], f"limit {run['limit']}: {counts}"
        assert (x.numel() // x.shape[0] >= run["limit"]) == run["taken"], f"limit {run['limit']}"
        for got in (layer(x), _as_function(layer, x)):
            worst = torch.where((got - plain).abs() > (worst - plain).abs(), got, worst)
    return {"y": worst}


def _as_function(layer: chunked_conv.ChannelChunkConv3d, x: Tensor) -> Tensor:
    return chunked_conv.chunked_conv3d(
        x, layer.weight, layer.bias, stride=layer.stride, padding=layer.padding, limit=layer.limit
    )


@runs_cases(lambda case: family("functions")(case) and case.name.endswith("padding"))
def padding(case: Case) -> Tensors:
    """Padding and interpolation, in chunks and at once."""
    x = needed(case, "x")
    limit = case.config["numel_limit_tested"]
    out: Tensors = {}
    for name, call in (
        ("pad333", lambda limit: chunked_conv.pad_clip(x, 1, 1, 1, limit=limit)),
        ("pad_w2_h1_t2", lambda limit: chunked_conv.pad_clip(x, 2, 1, 2, limit=limit)),
        ("interpolate_x2", lambda limit: chunked_conv.interpolate_nearest(x, 2.0, limit=limit)),
    ):
        out[name] = call(limit)
        assert torch.equal(out[name], call(chunked_conv.PADDING_LIMIT)), f"{name} in chunks differs"
    return out


@runs_cases(family("PadConv3D"))
def padded_convolution(case: Case) -> Tensors:
    """The padded 3x3x3 convolution."""
    settings = case.config
    layer = chunked_conv.PadConv3d(settings["in_channels"], settings["out_channels"], settings["kernel_size"])
    fill_by_rule(layer, case)
    return {"y": layer(needed(case, "x"))}


@runs_table("chunk_counts", "cases")
def chunk_counts(rows: list[list[Any]]) -> Iterator[Row]:
    """The rule for the number of chunks."""
    for wanted, channels, recorded in rows:
        try:
            got: Any = chunked_conv.divisible_chunks(wanted, channels)
        except ZeroDivisionError:
            got = "ZeroDivisionError"
        yield Row(f"{wanted} of {channels}", got, recorded)
