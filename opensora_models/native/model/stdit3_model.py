"""ComfyUI's MODEL for Open-Sora: the wrapper its samplers talk to, and the config its loaders fill in."""

from __future__ import annotations

import logging
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...checkpoint.kinds import T5, describe
from ...checkpoint.reading import LONGEST_QUOTE, one_line, quoted
from ...checkpoint.settings import NAME as SETTINGS
from ...checkpoint.settings import to_tensor
from ...releases.groups import SPATIAL_FACTOR
from ...releases.printed_sizes import FRAME_RATE
from ...sampling.schedule import IMAGE_FPS
from ...stdit3.config import STDiT3Config
from ...stdit3.keys import from_checkpoint_key, to_checkpoint_key
from ...stdit3.settings import saved_settings
from ...text.t5_config import t5_config
from ...transformer.handing import own
from ..memory import activation_bytes
from ..text.clip import T5_KEY, clip_target
from . import latent_formats
from .conds import FIXED_POINT, FrameNumbers, PerFrame, TextRows
from .frame_masks import is_free, ratios_from_mask
from .stdit3_network import NativeSTDiT3

logger = logging.getLogger("opensora")

AGAIN = "download the file again, and load it with Open-Sora Load Model, which looks before it loads"

LATENT_FORMATS: dict[str, type[Any]] = {"1.2": latent_formats.OpenSora12, "1.3": latent_formats.OpenSora13}


class OpenSoraModel(comfy.model_base.BaseModel):
    """What ``patcher.model`` is. Documented conditioning keys are listed at :meth:`extra_conds`."""

    def __init__(self, model_config: OpenSoraConfig, device: torch.device | None = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=NativeSTDiT3)
        self.device = None  # ComfyUI stores the construction device; ours may be "meta", where nothing can run

    @property
    def opensora(self) -> STDiT3Config:
        """The numbers of the network."""
        return self.model_config.opensora

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """The network's arguments from one conditioning entry.

        Read from the conditioning: ``cross_attn`` (the text [B, L, C]) with an optional ``attention_mask``,
        ``frame_rate``, ``opensora_pixel_size`` (height, width) where it is not eight times the latent,
        ``opensora_given_latent`` [B, C, T, h, w] in the autoencoder's own scale, ``opensora_given_frames`` (latent
        frame numbers) and ``opensora_given_drop``. From the LATENT: the ``denoise_mask``, one edit ratio per frame.
        """
        noise, device = kwargs["noise"], kwargs["device"]
        self._check_latents(noise)
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

    def apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        """As core's; the wrappers around it may write into what they are handed, noise levels of the run included."""
        return super().apply_model(*own(args), **{name: own(value) for name, value in kwargs.items()})

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """Autoencoder latents [B, C, T, h, w] -> normalised ones. Raises ValueError for latents of another model."""
        self._check_latents(latent)
        return super().process_latent_in(latent)

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """Kept frames are shown to the network without noise (upstream ``opensora/schedulers/rf/__init__.py``)."""
        return latent_image

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[Any]] | None = None) -> float:
        """Bytes one forward of a batch [B, C, T, h, w] needs beside the weights."""
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        device = comfy.model_management.get_torch_device().type
        return activation_bytes(self.opensora, input_shape, size, device) * self.memory_usage_factor

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", assign: bool = False) -> OpenSoraModel:
        """Puts the weights in place; unlike ComfyUI's own, missing tensors are an error and not a log line.

        Raises ValueError with the first missing names.
        """
        own = {name[len(unet_prefix) :]: sd.pop(name) for name in list(sd) if name.startswith(unet_prefix)}
        own.pop(SETTINGS, None)
        own = self.model_config.process_unet_state_dict(own)
        try:
            missing, unexpected = self.diffusion_model.load_state_dict(own, strict=False, assign=assign)
        except RuntimeError as error:  # torch lists every tensor of another size
            reason = one_line(str(error).partition(":")[2] or str(error), LONGEST_QUOTE)
            raise ValueError(
                f"This {self.opensora.version} diffusion model does not fit ({reason}); {AGAIN}."
            ) from error
        if missing:
            names = ", ".join(f"'{to_checkpoint_key(name)}'" for name in missing[:3])
            raise ValueError(
                f"This {self.opensora.version} diffusion model lacks {len(missing)} tensors, for example {names}; "
                f"{AGAIN}."
            )
        if unexpected:
            logger.warning(
                "%d tensors of the file are not used, for example %s.", len(unexpected), quoted(unexpected[0])
            )
        return self

    def _check_latents(self, noise: Tensor) -> None:
        channels = self.latent_format.latent_channels
        if noise.ndim != 5 or noise.shape[1] != channels:
            raise ValueError(
                f"The latent has shape {list(noise.shape)}, but Open-Sora {self.opensora.version} samples "
                f"[batch, {channels}, latent frames, height/8, width/8]; make it with Empty Open-Sora Latent."
            )

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
        numbers = sorted(set(kwargs.get("opensora_given_frames") or ()))
        frames = noise.shape[2]
        if any(not 0 <= number < frames for number in numbers):
            raise ValueError(
                f"The given latent frames {numbers} are not all among latent frames 0 to {frames - 1} of the latent "
                "being sampled."
            )
        flags = torch.zeros((1, 1, frames, 1, 1), dtype=torch.int64)
        flags[:, :, numbers] = 1
        latents = torch.zeros((1, *noise.shape[1:]), device=device)
        given = kwargs.get("opensora_given_latent")
        if given is not None and numbers and not kwargs.get("opensora_given_drop", False):
            latents = self._given_latents(given, noise).to(device) * flags.to(device)
        return {
            "given_latents": PerFrame(latents),
            "given_mask": PerFrame(flags.to(device)),
            "given_frames": FrameNumbers(flags),
        }

    def _given_latents(self, given: Tensor, noise: Tensor) -> Tensor:
        if given.ndim != 5 or given.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"The given frames come as latents of shape {list(given.shape)}, but the latent being sampled is "
                f"{list(noise.shape)}; encode the references at the size and length of the video."
            )
        return self.process_latent_in(given.float())


class OpenSoraConfig(comfy.supported_models_base.BASE):
    """ComfyUI's description of the model while it is being built."""

    unet_config = {"image_model": "opensora_stdit3"}
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    # A factor on our own estimate in bytes, so nodes that scale it keep working; 1.0 is the measured need.
    memory_usage_factor = 1.0
    # Without float16: see set_inference_dtype.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.opensora: STDiT3Config = unet_config["opensora"]
        self.latent_format = LATENT_FORMATS[self.opensora.version]
        super().__init__(unet_config)

    @classmethod
    def of(cls, config: STDiT3Config, as_upstream: bool = False) -> OpenSoraConfig:
        """The description for a network config; ``as_upstream`` repeats the original's bfloat16 rounding."""
        named_for_unets = {"model_channels": config.hidden_size}  # core's FreeU reads it
        return cls({**cls.unet_config, **named_for_unets, "opensora": config, "as_upstream": as_upstream})

    def set_inference_dtype(
        self, dtype: torch.dtype, manual_cast_dtype: torch.dtype | None, device: torch.device | None = None
    ) -> None:
        """Weights may be stored as float16, but the arithmetic is done in bfloat16 or float32.

        Random weights of the released size reach 25 of float16's 65504; the released weights, whose outliers decide,
        have not been measured.
        """
        if torch.float16 in (manual_cast_dtype, None if manual_cast_dtype else dtype):
            usable = comfy.model_management.should_use_bf16(device)
            manual_cast_dtype = torch.bfloat16 if usable else torch.float32
        self.unet_config["dtype"] = dtype
        self.manual_cast_dtype = manual_cast_dtype

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> OpenSoraModel:
        """The model without weights."""
        return OpenSoraModel(self, device=device)

    def clip_target(self, state_dict: dict[str, Tensor] | None = None) -> Any:
        """What a text encoder inside the same checkpoint is made of; None if there is no T5 in it."""
        start = f"{self.text_encoder_key_prefix[0]}{T5_KEY}.transformer."
        weights = {name: value for name, value in (state_dict or {}).items() if name.startswith(start)}
        shapes = {name[len(start) :]: tuple(value.shape) for name, value in weights.items()}
        return clip_target(weights, t5_config(shapes, "The text encoder"), start) if describe(shapes) is T5 else None

    def process_unet_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the file -> names of the modules."""
        return {from_checkpoint_key(name): tensor for name, tensor in state_dict.items()}

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the modules -> names of the released file, under ComfyUI's prefix; with the settings as one more."""
        released = {to_checkpoint_key(name): tensor for name, tensor in state_dict.items()}
        released[SETTINGS] = to_tensor(saved_settings(self.opensora))
        return super().process_unet_state_dict_for_saving(released)


def opensora_config(model: Any) -> STDiT3Config | None:
    """The network numbers of a MODEL (``ModelPatcher``); None if it is not an Open-Sora model."""
    inner = getattr(model, "model", None)
    return inner.opensora if isinstance(inner, OpenSoraModel) else None


def null_text(model: Any) -> Tensor:
    """The learned text of an empty prompt, [L, caption channels] float32 on the CPU; cut it to the prompt's length.

    Raises ValueError for a MODEL that is not Open-Sora.
    """
    if opensora_config(model) is None:
        raise ValueError("The MODEL is not an Open-Sora diffusion model; load one with Open-Sora Load Model.")
    return model.model.diffusion_model.y_embedder.y_embedding.detach().to("cpu", torch.float32, copy=True)
