"""Numbers fixed by the trained autoencoders: how latents are brought to unit size for the diffusion model.

A LATENT carries the autoencoder's own latents; ``normalise`` is what the diffusion model wants to see. The values
are constants of Open-Sora's program (v1.2: also stored in the checkpoint as ``shift`` and ``scale``). Sources:
opensora/models/vae/vae.py of release 1.2, opensora/models/vae_v1_3/constants.py of release 1.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Scaling between the v1.2 image stage and its temporal stage. The image autoencoder's own configuration says 0.13025;
# Open-Sora 1.2 was trained with the Stable Diffusion 1 constant instead (opensora/models/vae/vae.py).
V12_IMAGE_SCALE = 0.18215

# Open-Sora 1.2 pipeline: z = (z_t - shift) / scale, per channel.
V12_SHIFT = (-0.10, 0.34, 0.27, 0.98)
V12_SCALE = (3.85, 2.32, 2.33, 3.06)


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation per latent channel; nested tuples hold one value per position in a chunk of 5."""

    mean: tuple[float, ...] | tuple[tuple[float, ...], ...]
    std: tuple[float, ...] | tuple[tuple[float, ...], ...]

    def tensors(self, frames: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Mean and std as float32 [1, C, 1 or frames, 1, 1] for ``frames`` latent frames."""
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in self)
        if mean.ndim == 2:
            mean, std = (_per_position(values, frames) for values in (mean, std))
        else:
            mean, std = mean[:, None], std[:, None]
        return mean[None, :, :, None, None], std[None, :, :, None, None]

    def normalise(self, latents: Tensor) -> Tensor:
        """(z - mean) / std of [B, C, T, h, w], computed in float32 and returned in the latents' dtype."""
        mean, std = self.tensors(latents.shape[2], latents.device)
        return ((latents.float() - mean) / std).to(latents.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        """z * std + mean of [B, C, T, h, w], computed in float32 and returned in the latents' dtype."""
        mean, std = self.tensors(latents.shape[2], latents.device)
        return (latents.float() * std + mean).to(latents.dtype)


def _per_position(values: Tensor, frames: int) -> Tensor:
    positions = values.shape[1]
    if frames == 1:
        return values[:, :1]
    if frames % positions:
        nearest = max(1, round(frames / positions)) * positions
        raise ValueError(
            f"Statistics per chunk position need 1 or a multiple of {positions} latent frames, not {frames}; "
            f"the nearest good value is {nearest}."
        )
    return values.repeat(1, frames // positions)


V12_STATISTICS = ChannelStatistics(mean=V12_SHIFT, std=V12_SCALE)

# fmt: off
V13_MEAN = (
    -0.1901695, -0.044800628, 0.020789705, 0.018653357, -0.011585569, 0.0010865575, 0.08378933, 0.08902134,
    0.009409455, 0.08086848, -0.07251628, 0.05052144, -0.020972481, -0.12230792, -0.0038623565, -0.023072388,
)
V13_STD = (
    0.9490776, 0.9594118, 0.9444303, 0.91032845, 0.95935166, 0.84303516, 0.8888125, 0.9291137,
    0.97259414, 0.8917954, 0.8630854, 0.82798916, 0.91143, 0.7922845, 0.8991407, 0.9473514,
)
_V13_CHUNK_MEAN = (
    (-0.31038138, -0.17488302, -0.1390065, -0.11228419, -0.2143084),
    (0.089755274, -0.055954233, -0.07017383, -0.12842283, -0.059222423),
    (0.009729884, 0.022306992, 0.023845116, 0.023336032, 0.024730036),
    (0.10618276, -0.10902954, 0.060719784, 0.10005339, -0.06466035),
    (0.029384656, 0.052769065, -0.0128054805, -0.03036861, -0.09690209),
    (0.01716991, -0.007233284, 0.0011372794, -0.0029931865, -0.0026791762),
    (0.11501131, 0.087407455, 0.0757848, 0.07428467, 0.066402785),
    (0.043605775, 0.12531929, 0.05740308, 0.09716418, 0.12161173),
    (-0.003800593, 0.066950716, 0.0037457007, 0.00064624334, -0.020493738),
    (0.09442657, 0.047472052, 0.043563962, 0.05506575, 0.16380565),
    (-0.17690079, -0.13735504, -0.02259145, 0.033208176, -0.058970865),
    (0.049464937, 0.06297766, 0.0469673, 0.042452283, 0.05074439),
    (-0.052013952, -0.038366813, -0.0018303691, -0.0057245153, -0.0069338484),
    (-0.068219386, -0.13791534, -0.14595246, -0.11955552, -0.13990912),
    (-0.009703802, -0.014363708, -0.0051330593, 0.0068099457, 0.003080054),
    (-0.14393239, -0.00912384, -0.01863871, -0.005709422, 0.06205809),
)
_V13_CHUNK_STD = (
    (0.9969105, 0.9459409, 0.9167423, 0.92885023, 0.89932984),
    (1.0192935, 0.9416692, 0.9346943, 0.9353694, 0.9003037),
    (0.9833934, 0.9082298, 0.9308427, 0.9624826, 0.9349732),
    (0.97186136, 0.91052, 0.8878196, 0.86988616, 0.86309445),
    (1.0202057, 0.94473195, 0.9330361, 0.9632452, 0.92104787),
    (1.0385587, 0.8876768, 0.7368917, 0.7580699, 0.75087255),
    (1.0592127, 0.8657043, 0.82151794, 0.8476718, 0.8209494),
    (0.9920972, 0.927169, 0.89886844, 0.9289982, 0.8869122),
    (1.0359006, 0.95993954, 0.9465613, 0.9801757, 0.93422),
    (0.962186, 0.8828722, 0.87103915, 0.8808464, 0.8516325),
    (0.9560437, 0.84533536, 0.8308913, 0.825839, 0.8010841),
    (0.98799556, 0.811466, 0.75618976, 0.788991, 0.7724365),
    (0.9584462, 0.8858027, 0.89920944, 0.9229688, 0.884798),
    (0.9060379, 0.78632456, 0.73743653, 0.7614733, 0.74287385),
    (0.9648598, 0.8712865, 0.8902931, 0.8947093, 0.87098163),
    (1.0170196, 0.9330488, 0.9144401, 0.9294653, 0.88715833),
)
# fmt: on

V13_RELEASED = "video"
# Open-Sora 1.3's ``normalization`` options by their original names.
V13_STATISTICS = {
    "video": ChannelStatistics(V13_MEAN, V13_STD),
    "video_5frames": ChannelStatistics(_V13_CHUNK_MEAN, _V13_CHUNK_STD),
}


class Exchange(NamedTuple):
    """Maps latents of a file with its ``own`` statistics (None: unit size) to those every other program expects."""

    own: ChannelStatistics | None
    common: ChannelStatistics

    def from_file(self, latents: Tensor) -> Tensor:
        """The file's latents as if its statistics were the common ones."""
        unit = latents.float() if self.own is None else self.own.normalise(latents.float())
        return self.common.denormalise(unit).to(latents.dtype)

    def to_file(self, latents: Tensor) -> Tensor:
        """The inverse of ``from_file``."""
        unit = self.common.normalise(latents.float())
        return (unit if self.own is None else self.own.denormalise(unit)).to(latents.dtype)


# Released files store shift and scale in bfloat16 (8 significant bits); anything farther off was meant.
_ROUNDING = 2.0**-8


def exchange_with(shift: Tensor | None, scale: Tensor | None) -> Exchange | None:
    """How latents of a v1.2 file with these buffers are exchanged; None where they are the common constants.

    Raises ValueError for values that no latents can have been normalised with.
    """
    if shift is None or scale is None:
        return None
    common = V12_STATISTICS.tensors(1)
    if shift.numel() != common[0].numel() or scale.numel() != common[1].numel():
        raise ValueError(f"shift and scale hold {shift.numel()} and {scale.numel()} values; expected 4 of each.")
    own = tuple(value.detach().float().cpu().reshape(common[0].shape) for value in (shift, scale))
    if all(torch.allclose(a, b, rtol=_ROUNDING, atol=0.0) for a, b in zip(own, common, strict=True)):
        return None
    if not bool(torch.isfinite(torch.cat(own)).all()) or bool((own[1] == 0).any()):
        raise ValueError("shift and scale must be finite, and no scale may be 0.")
    mean, std = (tuple(value.flatten().tolist()) for value in own)
    return Exchange(ChannelStatistics(mean, std), V12_STATISTICS)


def exchange_named(normalization: str | None) -> Exchange | None:
    """How latents of a v1.3 file with this ``normalization`` are exchanged; None where it is the released one."""
    if normalization == V13_RELEASED:
        return None
    own = None if normalization is None else V13_STATISTICS[normalization]
    return Exchange(own, V13_STATISTICS[V13_RELEASED])


def exchange_scaled(own: tuple[float, float], common: tuple[float, float], channels: int) -> Exchange | None:
    """How latents of a file with one shift and one scale for all channels are exchanged; None where both are alike.

    The diffusion model sees ``scale · (latents - shift)``; each pair is (shift, scale).
    """
    if own == common:
        return None
    mine, others = (ChannelStatistics((shift,) * channels, (1 / scale,) * channels) for shift, scale in (own, common))
    return Exchange(mine, others)
