"""The losses the autoencoders are trained with: Gaussian, adversarial, reconstruction and LPIPS; padding helpers.

Settings a case leaves out have the default of the original's class, which differs by release.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golden.runner import Case, Outputs, fill_by_rule, runs_cases
from opensora.opensora_models.vae import chunked_conv
from opensora.training import adversarial, reconstruction
from opensora.training.lpips import LPIPS
from opensora.training.posterior import TrainingPosterior

Settings = dict[str, Any]

V12_START = 50001
# Weight of LPIPS and of KL by release.
LOSS_WEIGHTS = {"1.2": (0.1, 1e-6), "1.3": (1.0, 1e-6), "2.0": (1.0, 5e-4)}


def scalar(value: Tensor | float) -> Tensor:
    """Scalars are recorded with shape [1]."""
    return torch.as_tensor(value).reshape(1)


def root(*classes: str) -> Callable[[Case], bool]:
    """Cases recorded from one of these classes of the original."""
    return lambda case: case.root in classes


def release(case: Case) -> str:
    """Release number without the v."""
    return str(case.info["version"]).removeprefix("v")


def setting(settings: Settings, *names: str, otherwise: Any) -> Any:
    """The first of these settings that the case has; each release has its own name for it. None counts as 0."""
    value = next((settings[name] for name in names if name in settings), otherwise)
    return 0.0 if value is None else value


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Plain convolution of pictures or clips."""
    return F.conv3d(x, weight) if x.ndim == 5 else F.conv2d(x, weight)


# -- Gaussian --------------------------------------------------------------------------------------------------------


@runs_cases(root("DiagonalGaussianDistribution"), "vae")
def gaussian(case: Case) -> dict[str, Tensor]:
    """Mean, deviation, divergences and likelihood, also clamped and deterministic."""

    def of(name: str, point: bool = False) -> TrainingPosterior:
        return TrainingPosterior(case.need(name), per_frame=release(case) == "2.0", deterministic=point)

    ours = of("params", bool(case.config.get("deterministic")))
    return case.computed(
        {
            "mean": lambda: ours.mean,
            "mode": lambda: ours.mean,
            "logvar": lambda: ours.log_variance,
            "std": lambda: ours.std,
            "var": lambda: ours.variance,
            "sample": lambda: ours.mean + ours.std * case.need("noise"),
            "kl": ours.kl,
            "kl_other": lambda: ours.kl(of("other")),
            "nll_of_sample": lambda: ours.nll(ours.mean + ours.std * case.need("noise")),
            "extreme_logvar": lambda: of("params_extreme").log_variance,
            "deterministic_std": lambda: of("params", True).std,
            "deterministic_kl": lambda: of("params", True).kl(),
        }
    )


# -- Single functions ------------------------------------------------------------------------------------------------


@runs_cases(root("functions"), "vae")
def functions(case: Case) -> list[Outputs]:
    """Whichever functions the case records: losses by name, paddings with their sizes in the name."""
    for row in case.info.get("adopt_weight_table") or ():
        got = adversarial.adopt_weight(
            row["weight"], row["global_step"], row.get("threshold", 0), row.get("value", 0.0)
        )
        if got != row["result"]:
            raise ValueError(f"adopt_weight {row}: {got}")
    limit = case.config.get("numel_limit_tested") or chunked_conv.PADDING_LIMIT
    losses = case.computed(_losses(case))
    return [losses | case.computed(_paddings(case, size)) for size in (limit, chunked_conv.PADDING_LIMIT)]


def _losses(case: Case) -> dict[str, Callable[[], Tensor]]:
    def both(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: scalar(function(case.need("real"), case.need("fake")))

    def error() -> Tensor:
        return case.need("real") - case.need("fake")

    def use() -> tuple[Tensor, Tensor]:
        return reconstruction.perplexity(case.need("indices"), case.config["n_embed"])

    def cross_entropy(label: float) -> Tensor:
        return adversarial.sigmoid_cross_entropy(case.need("real"), torch.full_like(case.need("real"), label))

    return {
        "hinge_d": both(adversarial.hinge),
        "vanilla_d": both(adversarial.vanilla),
        "wgan_d": both(adversarial.wasserstein),
        "sigmoid_ce_ones": partial(cross_entropy, 1.0),
        "sigmoid_ce_zeros": partial(cross_entropy, 0.0),
        "lecam": both(lambda real, made: adversarial.lecam(real.mean(), made.mean(), *case.need("ema"))),
        "gradient_penalty": lambda: scalar(penalty(case)),
        "perplexity": lambda: scalar(use()[0]),
        "cluster_use": lambda: scalar(use()[1]),
        "l1": lambda: error().abs(),
        "l2": lambda: error().square(),
        "batch_mean_l1": lambda: scalar(reconstruction.batch_mean(error().abs())),
    }


def penalty(case: Case) -> Tensor:
    """Gradient penalty of the small network the case describes."""
    with torch.enable_grad():
        images = case.need("images").clone().requires_grad_(True)
        logits = torch.tanh(convolved(images, case.need("gp_w")))
        return adversarial.gradient_penalty(images, logits).detach()


def _paddings(case: Case, limit: int) -> dict[str, Callable[[], Tensor]]:
    """Padding and interpolation of ``in.x``, in chunks of ``limit`` elements."""
    makers: dict[str, Callable[[], Tensor]] = {
        "pad333": lambda: chunked_conv.pad_clip(case.need("x"), 1, 1, 1, limit=limit)
    }
    for name in case.expected:
        if found := re.fullmatch(r"pad_w(\d+)_h(\d+)_t(\d+)", name):
            sizes = map(int, found.groups())
            makers[name] = partial(chunked_conv.pad_clip, case.need("x"), *sizes, limit=limit)
        elif found := re.fullmatch(r"interpolate_x([\d.]+)", name):
            makers[name] = partial(chunked_conv.interpolate_nearest, case.need("x"), float(found[1]), limit=limit)
    return makers


# -- Adversarial losses ----------------------------------------------------------------------------------------------


@runs_cases(root("AdversarialLoss", "GeneratorLoss"), "vae")
def generator_loss(case: Case) -> dict[str, Tensor]:
    """Weighted and plain generator terms for each recorded setting."""
    out: dict[str, Tensor] = {}
    with torch.enable_grad():
        last_layer = case.need("W").clone().requires_grad_(True)
        again = convolved(case.need("h"), last_layer)
        video = case.need("video")
        nll = (video - again).abs().sum() / video.shape[0]
        logits = convolved(again, case.need("D"))
        for index, row in enumerate(case.config):
            loss = generator_of(row["cfg"], str(case.root))
            weighted, plain = loss(logits, nll, last_layer, row["global_step"])
            balance = adversarial.adaptive_weight(nll, adversarial.generator_term(logits), last_layer)
            out |= {f"weighted_{index}": scalar(weighted.detach()), f"g_loss_{index}": scalar(plain.detach())}
            out[f"d_weight_{index}"] = scalar(balance * loss.weight)  # the recorded one contains the setting
    return out | {"nll": scalar(nll.detach()), "logits_fake": logits.detach()}


def generator_of(settings: Settings, name: str) -> adversarial.GeneratorLoss:
    """The loss of 1.2's class (AdversarialLoss) or of the later releases (GeneratorLoss)."""
    early = name == "AdversarialLoss"
    return adversarial.GeneratorLoss(
        start=setting(
            settings, "discriminator_start", "gen_start", "disc_start",
            otherwise=V12_START if early else adversarial.DISCRIMINATOR_START,
        ),
        factor=setting(settings, "discriminator_factor", "disc_factor", otherwise=1.0),
        weight=setting(settings, "generator_factor", "disc_weight", otherwise=0.5),
        kind=setting(settings, "generator_loss_type", otherwise="non-saturating" if early else "hinge"),
    )  # fmt: skip


@runs_cases(root("DiscriminatorLoss"), "vae")
def discriminator_loss(case: Case) -> dict[str, Tensor]:
    """Discriminator and LeCam terms for each recorded setting."""
    early, out = release(case) == "1.2", {}
    for index, row in enumerate(case.config):
        settings = row["cfg"]
        loss = adversarial.DiscriminatorLoss(
            start=setting(
                settings, "discriminator_start", "disc_start",
                otherwise=V12_START if early else adversarial.DISCRIMINATOR_START,
            ),
            factor=setting(settings, "discriminator_factor", "disc_factor", otherwise=1.0),
            kind=setting(
                settings, "discriminator_loss_type", "disc_loss_type", otherwise="non-saturating" if early else "hinge"
            ),
            lecam_weight=setting(settings, "lecam_loss_weight", otherwise=0.0),
        )  # fmt: skip
        means = adversarial.LogitMeans(dtype=torch.float32)
        means.real, means.made = (_running_mean(case, row, side) for side in ("real", "fake"))
        value, lecam = loss(case.need("real"), case.need("fake"), row["global_step"], means)
        out |= {f"loss_{index}": scalar(value), f"lecam_{index}": scalar(lecam)}
    return out


def _running_mean(case: Case, row: Settings, side: str) -> Tensor:
    """LeCam's running mean of one side: an argument of the row, a tensor, or a number in the notes; else 0."""
    if f"lecam_ema_{side}" in row:
        return torch.tensor(float(row[f"lecam_ema_{side}"]))
    tensor = case.input("ema")
    if tensor is not None:
        return tensor[0 if side == "real" else 1]
    found = re.search(rf"ema_{side} *= *(-?[\d.]+\d)", str(case.info.get("notes")))
    return torch.tensor(float(found[1]) if found else 0.0)


@runs_cases(root("LeCamEMA"), "vae")
def lecam_means(case: Case) -> dict[str, Tensor]:
    """Running means after each of the recorded updates."""
    settings = case.config
    means = adversarial.LogitMeans(
        settings.get("decay", 0.999), getattr(torch, settings.get("dtype", "bfloat16")),
        real=settings.get("ema_real", 0.0), made=settings.get("ema_fake", 0.0),
    )  # fmt: skip
    history: list[tuple[Tensor, Tensor]] = []
    for real, made in zip(case.need("real"), case.need("fake"), strict=True):
        means.update(real, made)
        history.append((means.real, means.made))
    return {"ema_real": torch.stack([row[0] for row in history]), "ema_fake": torch.stack([row[1] for row in history])}


# -- Autoencoder loss and LPIPS --------------------------------------------------------------------------------------


@runs_cases(root("LPIPS"), "vae")
def lpips(case: Case) -> dict[str, Tensor]:
    """The distance and its five terms."""
    network = LPIPS()
    fill_by_rule(network, case)
    a, b = case.need("a"), case.need("b")
    return {"lpips": network(a, b)} | {f"layer_{i}": term for i, term in enumerate(network.layers(a, b))}


@runs_cases(root("VAELoss"), "vae")
def vae_loss(case: Case) -> dict[str, Tensor]:
    """All returned terms, with and without the perceptual part and the posterior."""
    settings, weights = case.config, LOSS_WEIGHTS[release(case)]
    loss = reconstruction.AutoencoderLoss(
        setting(settings, "perceptual_loss_weight", otherwise=weights[0]),
        setting(settings, "kl_loss_weight", otherwise=weights[1]), setting(settings, "logvar_init", otherwise=0.0),
    )  # fmt: skip
    fill_by_rule(loss, case)
    moments, nll_weights = case.input("moments"), case.input("nll_weights")
    posterior = None if moments is None else TrainingPosterior(moments, per_frame=release(case) == "2.0")
    clips = (case.need("video"), case.need("recon"))
    full = loss(*clips, posterior, nll_weights=1.0 if nll_weights is None else nll_weights)
    ways = {
        "": full,
        "noperc_": loss(*clips, posterior, perceptual=False),  # recorded without nll_weights
        "noposterior_": loss(*clips, None),
    }
    names = {
        "nll_loss": "nll", "weighted_nll_loss": "weighted_nll", "weighted_kl_loss": "kl", "kl_loss": "kl",
        "recon_loss": "reconstruction", "perceptual_loss": "perceptual",
    }  # fmt: skip
    return {
        prefix + name: scalar(getattr(terms, ours)) for prefix, terms in ways.items() for name, ours in names.items()
    }
