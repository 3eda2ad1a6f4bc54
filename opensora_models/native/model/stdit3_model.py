"""ComfyUI's MODEL for Open-Sora 1.2 and 1.3: the wrapper its samplers talk to, and the config its loaders fill in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.conds
import torch
from torch import Tensor, nn

from ...parallel.clips import STDiT3Clip
from ...releases.encoded_text import check_encoded_for
from ...releases.groups import SPATIAL_FACTOR
from ...releases.printed_sizes import FRAME_RATE
from ...releases.stdit3_cost import NetworkSize, operations_per_row
from ...sampling.schedule import IMAGE_FPS, TRAIN_TIMESTEPS
from ...stdit3.config import STDiT3Config, config_from_shapes
from ...stdit3.keys import from_checkpoint_key, to_checkpoint_key
from ...stdit3.network import STDiT3
from ...stdit3.settings import complete, saved_settings
from ..memory import activation_bytes, bytes_of_values
from ..messages import tell
from .base_model import OpenSoraBase, OpenSoraConfigBase, release_of
from .conds import FIXED_POINT, FrameNumbers, PerFrame, TextRows
from .frame_masks import active_at, denoise_mask_function, is_free, ratios_from_mask
from .stdit3_network import NativeSTDiT3
from .unread import unread


class OpenSoraModel(OpenSoraBase):
    """What ``patcher.model`` is. Documented conditioning keys are listed at :meth:`extra_conds`."""

    def __init__(self, model_config: OpenSoraConfig, device: torch.device | None = None) -> None:
        super().__init__(model_config, NativeSTDiT3, device)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """The network's arguments from one conditioning entry.

        Read from the conditioning: ``cross_attn`` (the text [B, L, C]) with an optional ``attention_mask``,
        ``frame_rate``, ``opensora_pixel_size`` (height, width) where it is not eight times the latent,
        ``opensora_given_latent`` [B, C, T, h, w] in the autoencoder's own scale, ``opensora_given_frames`` (latent
        frame numbers) and ``opensora_given_drop``. From the LATENT: the ``denoise_mask``, one edit ratio per frame.
        """
        noise, device = kwargs["noise"], kwargs["device"]
        self.check_latents(noise)
        check_encoded_for(kwargs, self.release)
        tell(*unread(kwargs, self.release))
        height, width = kwargs.get("opensora_pixel_size") or (side * SPATIAL_FACTOR for side in noise.shape[-2:])
        fps = IMAGE_FPS if noise.shape[2] == 1 else float(kwargs.get("frame_rate") or FRAME_RATE)
        conds = {
            "text": TextRows(self._text_rows(kwargs.get("cross_attn"), kwargs.get("attention_mask"), device)),
            "frame_rate": comfy.conds.CONDRegular(torch.tensor([round(fps * FIXED_POINT)], device=device)),
            "height": comfy.conds.CONDConstant(height),
            "width": comfy.conds.CONDConstant(width),
        }
        conds |= self._mask_conds(kwargs.get("denoise_mask"), noise)
        if kwargs.get("opensora_given_latent") is not None or kwargs.get("opensora_given_frames") is not None:
            conds |= self._given_conds(kwargs, noise, device)
        return conds

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """Kept frames are shown to the network without noise (upstream ``opensora/schedulers/rf/__init__.py``)."""
        return latent_image

    def bytes_of_forward(
        self, shape: list[int], dtype_size: int, device_type: str, cond_shapes: Mapping[str, list[Any]]
    ) -> float:
        """See :meth:`OpenSoraBase.bytes_of_forward`."""
        return activation_bytes(self.opensora, shape, dtype_size, device_type)

    def bytes_of_values(self, values: float, dtype_size: int, device_type: str) -> float:
        """See :meth:`OpenSoraBase.bytes_of_values`."""
        return bytes_of_values(values, dtype_size, device_type)

    def clip_of(self, shape: Sequence[int], cond_shapes: Mapping[str, list[Any]]) -> STDiT3Clip:
        """See :meth:`OpenSoraBase.clip_of`."""
        frames, rows, columns = (
            -(-side // patch) for side, patch in zip(shape[2:], self.opensora.patch_size, strict=True)
        )
        return STDiT3Clip(self.opensora, frames, (rows, columns))

    def tokens_of(self, cells: Sequence[int]) -> int:
        """See :meth:`OpenSoraBase.tokens_of`."""
        return math.prod(-(-cell // patch) for cell, patch in zip(cells, self.opensora.patch_size, strict=True))

    def noisy_frames(self, sigma: Tensor, conds: Mapping[str, Any]) -> Tensor | None:
        """See :meth:`OpenSoraBase.noisy_frames`."""
        ratios = conds.get("frame_ratios")
        return None if ratios is None else active_at(ratios, sigma * TRAIN_TIMESTEPS)[:, 0, :, 0, 0]

    def operations_of_row(self, cells: tuple[int, int, int]) -> float:
        """See :meth:`OpenSoraBase.operations_of_row`."""
        config = self.opensora
        window = config.kernel_size and config.kernel_size[:2]
        sizes = (config.hidden_size, config.depth, config.in_channels, config.caption_channels, config.mlp_ratio)
        return operations_per_row(NetworkSize(*sizes, window), cells, config.model_max_length)

    def _text_rows(self, text: Tensor | None, mask: Tensor | None, device: torch.device) -> list[Tensor]:
        """The kept tokens of every row of [B, L, C]; padding of encoders that pad is dropped."""
        wanted = self.opensora.caption_channels
        if text is None or text.ndim != 3 or text.shape[2] != wanted:
            found = "no text" if text is None else f"text of shape {list(text.shape)}"
            raise ValueError(
                f"The conditioning holds {found}, but this Open-Sora {self.opensora.version} model reads text "
                f"[batch, tokens, {wanted}] from a T5 encoder; encode the prompt with the text encoder made for it."
            )
        rows = list(text.to(device).unbind(0))
        if mask is not None:
            kept = mask.to(device).reshape(-1, text.shape[1]).bool()
            rows = [row[kept[index % len(kept)]] for index, row in enumerate(rows)]
        return rows

    def _mask_conds(self, denoise_mask: Tensor | None, noise: Tensor) -> dict[str, comfy.conds.CONDRegular]:
        if denoise_mask is None:
            return {}
        frames, pixels = ratios_from_mask(denoise_mask)
        conds: dict[str, comfy.conds.CONDRegular] = {}
        if not is_free(frames) or pixels is not None:
            conds["frame_ratios"] = PerFrame(frames)
        if pixels is not None:
            conds["pixel_ratios"] = PerFrame(pixels)
            conds["noise"] = PerFrame(noise)
        return conds

    def _given_conds(
        self, kwargs: dict[str, Any], noise: Tensor, device: torch.device
    ) -> dict[str, comfy.conds.CONDRegular]:
        """The frames the network is shown beside the noisy ones (1.3); none of them is still a valid answer."""
        if not self.opensora.takes_given_frames:
            raise ValueError(
                f"Open-Sora {self.opensora.version} has no input for given frames; keep frames with a frame mask on "
                "the latent instead, or load an Open-Sora 1.3 model."
            )
        frames = noise.shape[2]
        numbers = self.given_numbers(kwargs, frames)
        flags = self.given_flags(numbers, frames)
        latents = torch.zeros((1, *noise.shape[1:]), device=device)
        given = kwargs.get("opensora_given_latent")
        if given is not None and numbers and not kwargs.get("opensora_given_drop", False):
            latents = self.given_latents(given, noise).to(device) * flags.to(device)
        return {
            "given_latents": PerFrame(latents),
            "given_mask": PerFrame(flags.to(device)),
            "given_frames": FrameNumbers(flags),
        }


class OpenSoraConfig(OpenSoraConfigBase):
    """ComfyUI's description of the model while it is being built."""

    unet_config = {"image_model": "opensora_stdit3"}
    model_class = OpenSoraModel
    denoise_mask_function = staticmethod(denoise_mask_function)
    config_from_shapes = staticmethod(config_from_shapes)
    complete = staticmethod(complete)
    saved_settings = staticmethod(saved_settings)
    to_checkpoint_key = staticmethod(to_checkpoint_key)
    from_checkpoint_key = staticmethod(from_checkpoint_key)

    @staticmethod
    def empty_network(config: STDiT3Config) -> nn.Module:
        """The network without memory, of plain layers."""
        return STDiT3(config, operations=nn, device=torch.device("meta"))


def null_text(model: Any) -> Any:
    """The learned text of an empty prompt, [L, caption channels] float32 on the CPU; cut it to the prompt's length.

    None for a release whose empty text is the encoded "" (``release.text.learned_negative``). Raises ValueError for a
    MODEL that is not Open-Sora.
    """
    release = release_of(model)
    if release is None:
        raise ValueError("The MODEL is not an Open-Sora diffusion model; load one with Open-Sora Load Model.")
    if not release.text.learned_negative:
        return None
    return model.model.diffusion_model.y_embedder.y_embedding.detach().to("cpu", torch.float32, copy=True)
