"""What the MODELs of all releases share: ComfyUI's wrapper of a network, and the config its loaders fill in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...checkpoint.kinds import T5, describe
from ...checkpoint.settings import NAME as SETTINGS
from ...checkpoint.settings import Choices, to_tensor
from ...messages.quoting import LONGEST_QUOTE, one_line, quoted
from ...parallel.clips import Clip
from ...parallel.memory import Sharing
from ...releases.known import RELEASES
from ...releases.release import Release
from ...text.t5_config import T5Config, t5_config
from ...transformer.handing import own
from ..messages import tell
from ..text.clip import T5_KEY, clip_target
from .latent_formats import LATENT_FORMATS
from .speed import METER, cells_of
from .step_cache import STEP_CACHE, hooked

AGAIN = "download the file again, and load it with Open-Sora Load Model, which looks before it loads"

Shape = tuple[int, ...]


class OpenSoraBase(comfy.model_base.BaseModel):
    """What ``patcher.model`` is for every release; what differs is in the classes beside this one."""

    kept_bytes = 0.0
    """What a run to be prepared keeps beside the weights and the activations; see :meth:`keeping`."""
    sharing: Sharing | None = None
    """Among whom calls are shared at the moment; see :meth:`shared_among`."""

    def __init__(
        self, model_config: OpenSoraConfigBase, network: type[nn.Module], device: torch.device | None = None
    ) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=network)
        self.device = None  # ComfyUI stores the construction device; ours may be "meta", where nothing can run

    @property
    def opensora(self) -> Any:
        """The numbers of the network."""
        return self.model_config.opensora

    @property
    def release(self) -> Release:
        """The release the network belongs to."""
        return self.model_config.release

    def apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        """As core's; the wrappers around it may write into what they are handed, noise levels of the run included."""
        options = kwargs.get("transformer_options") or {}
        if METER in options:
            options[METER].count(args[0].shape[0] * self.operations_of_row(cells_of(args[0].shape)), options)
        if STEP_CACHE in options:
            level = float(args[1].flatten()[0])
            kwargs["transformer_options"] = hooked(options, len(args[0]), level, self.noisy_frames(args[1], kwargs))
        return super().apply_model(*own(args), **{name: own(value) for name, value in kwargs.items()})

    def noisy_frames(self, sigma: Tensor, conds: Mapping[str, Any]) -> Tensor | None:
        """Which frames of a call's clips are not clean yet, bool [B, T]; None where all have the call's noise."""
        return None

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """Autoencoder latents [B, C, T, h, w] -> normalised ones. Raises ValueError for latents of another model."""
        self.check_latents(latent)
        return super().process_latent_in(latent)

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list[Any]] | None = None) -> float:
        """Bytes one forward of a batch [B, C, T, h, w] needs beside the weights, and what the run keeps for later."""
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        device = comfy.model_management.get_torch_device().type
        shapes = cond_shapes or {}
        if self.sharing is None:
            forward = self.bytes_of_forward(input_shape, size, device, shapes)
        else:
            forward = self.bytes_of_share(self.sharing, input_shape, size, device, shapes)
        return forward * self.memory_usage_factor + self.kept_bytes

    def bytes_of_share(
        self, sharing: Sharing, shape: list[int], size: int, device: str, cond_shapes: Mapping[str, list[Any]]
    ) -> float:
        """Peak bytes of activations on the device that holds most, where calls are shared by several."""
        clip = self.clip_of(shape, cond_shapes)
        return sharing.bytes_of_call(shape[0], clip, size, lambda values: self.bytes_of_values(values, size, device))

    @contextmanager
    def shared_among(self, sharing: Sharing) -> Iterator[None]:
        """While calls are shared: ComfyUI is told what one device holds of them."""
        self.sharing = sharing
        try:
            yield
        finally:
            del self.sharing  # and none is left behind that would tell two models apart

    @contextmanager
    def keeping(self, rows: int, shape: Sequence[int]) -> Iterator[None]:
        """While a run is prepared whose step cache keeps so many rows of clips [B, C, T, h, w]: they are counted."""
        size = comfy.model_management.dtype_size(self.get_dtype_inference())
        self.kept_bytes = float(rows * shape[0] * self.tokens_of(shape[2:]) * self.opensora.hidden_size * size)
        try:
            yield
        finally:
            del self.kept_bytes  # and none is left behind that would tell two models apart

    def tokens_of(self, cells: Sequence[int]) -> int:
        """Tokens of latents [T, h, w] in the blocks, without those of the text."""
        raise TypeError(f"{type(self).__name__} has no count of its tokens.")

    def operations_of_row(self, cells: tuple[int, int, int]) -> float:
        """Operations of one row of latents [T, h, w] going once through the network, with text of full length."""
        raise TypeError(f"{type(self).__name__} has no count of its operations.")

    def bytes_of_forward(
        self, shape: list[int], dtype_size: int, device_type: str, cond_shapes: Mapping[str, list[Any]]
    ) -> float:
        """Peak bytes of activations; what :meth:`memory_required` answers before ComfyUI's own factor."""
        raise TypeError(f"{type(self).__name__} has no estimate of its memory.")

    def bytes_of_values(self, values: float, dtype_size: int, device_type: str) -> float:
        """The same for so many numbers in all tokens."""
        raise TypeError(f"{type(self).__name__} has no estimate of its memory.")

    def clip_of(self, shape: Sequence[int], cond_shapes: Mapping[str, list[Any]]) -> Clip:
        """One row of latents [B, C, T, h, w], to be shared."""
        raise TypeError(f"{type(self).__name__} cannot be shared.")

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", assign: bool = False) -> OpenSoraBase:
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
            raise ValueError(f"This {self.release.id} diffusion model does not fit ({reason}); {AGAIN}.") from error
        if missing:
            names = ", ".join(f"'{self.model_config.to_checkpoint_key(name)}'" for name in missing[:3])
            raise ValueError(
                f"This {self.release.id} diffusion model lacks {len(missing)} tensors, for example {names}; {AGAIN}."
            )
        if unexpected:
            tell(f"{len(unexpected)} tensors of the file are not used, for example {quoted(unexpected[0])}.")
        return self

    def check_latents(self, noise: Tensor) -> None:
        """Raises ValueError for latents that are not [B, C, T, h, w] of this release."""
        channels = self.latent_format.latent_channels
        if noise.ndim != 5 or noise.shape[1] != channels:
            space = self.release.latents.space
            raise ValueError(
                f"The latent has shape {list(noise.shape)}, but {self.release.title} samples [batch, {channels}, "
                f"latent frames, height/{space}, width/{space}]; make it with Empty Open-Sora Latent."
            )

    def given_numbers(self, conditioning: Mapping[str, Any], frames: int) -> list[int]:
        """The latent frames that are given, in order. Raises ValueError for numbers outside the clip."""
        numbers = sorted(set(conditioning.get("opensora_given_frames") or ()))
        if any(not 0 <= number < frames for number in numbers):
            raise ValueError(
                f"The given latent frames {numbers} are not all among latent frames 0 to {frames - 1} of the latent "
                "being sampled."
            )
        return numbers

    def given_latents(self, given: Tensor, noise: Tensor) -> Tensor:
        """Given frames [B, C, T, h, w] in the autoencoder's scale -> in the network's; shaped like the noise."""
        if given.ndim != 5 or given.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"The given frames come as latents of shape {list(given.shape)}, but the latent being sampled is "
                f"{list(noise.shape)}; encode the references at the size and length of the video."
            )
        return self.process_latent_in(given.float())

    def given_flags(self, numbers: list[int], frames: int) -> Tensor:
        """int64 [1, 1, T, 1, 1], 1 where a frame is given."""
        flags = torch.zeros((1, 1, frames, 1, 1), dtype=torch.int64)
        flags[:, :, numbers] = 1
        return flags


class OpenSoraConfigBase(comfy.supported_models_base.BASE):
    """ComfyUI's description of a model while it is being built."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    # A factor on our own estimate in bytes, so nodes that scale it keep working; 1.0 is the measured need.
    memory_usage_factor = 1.0
    # Without float16: see set_inference_dtype.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    model_class: ClassVar[type[Any]]
    """What :meth:`get_model` makes."""
    denoise_mask_function: ClassVar[Callable[..., Tensor] | None] = None
    """ComfyUI's hook on the noise mask; None leaves masks to core."""
    modulations_may_leave: ClassVar[bool] = False
    """Whether :func:`.modulations_apart.keep_apart` fits the network."""

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.opensora = unet_config["opensora"]
        self.latent_format = LATENT_FORMATS[unet_config["release"]]
        super().__init__(unet_config)

    @property
    def release(self) -> Release:
        """The release the weights belong to."""
        return RELEASES[self.unet_config["release"]]

    @classmethod
    def of(cls, config: Any, release: str, as_upstream: bool = False) -> Any:
        """The description for a network config; ``as_upstream`` repeats the original's bfloat16 rounding."""
        named_for_unets = {"model_channels": config.hidden_size}  # core's FreeU reads it
        more = {"opensora": config, "release": release, "as_upstream": as_upstream}
        return cls({**cls.unet_config, **named_for_unets, **more})

    @staticmethod
    def config_from_shapes(shapes: Mapping[str, Shape]) -> Any:
        """The network's numbers, read off names and shapes. Raises ValueError where something is missing."""
        raise TypeError("Every kind of network reads its own shapes.")

    @staticmethod
    def complete(config: Any, settings: Mapping[str, Any], choices: Choices | None = None) -> Any:
        """The numbers with what weights cannot tell. Raises ValueError for what no network can have."""
        raise TypeError("Every kind of network has its own settings.")

    @staticmethod
    def saved_settings(config: Any) -> dict[str, Any]:
        """What must travel with the weights so that :meth:`complete` gives this config again."""
        raise TypeError("Every kind of network has its own settings.")

    @staticmethod
    def empty_network(config: Any) -> nn.Module:
        """The network without memory, of plain layers."""
        raise TypeError("Every kind of network is made in its own way.")

    @staticmethod
    def to_checkpoint_key(key: str) -> str:
        """Name of a parameter -> its name in a released file."""
        return key

    @staticmethod
    def from_checkpoint_key(key: str) -> str:
        """The inverse of :meth:`to_checkpoint_key`."""
        return key

    @classmethod
    def released_shapes(cls, config: Any) -> dict[str, Shape]:
        """Names and shapes of a released file of this config; no memory is used."""
        state = cls.empty_network(config).state_dict()
        return {cls.to_checkpoint_key(name): tuple(tensor.shape) for name, tensor in state.items()}

    def set_inference_dtype(
        self, dtype: torch.dtype, manual_cast_dtype: torch.dtype | None, device: torch.device | None = None
    ) -> None:
        """Weights may be stored as float16, but the arithmetic is done in bfloat16 or float32.

        Random weights of the released size of 1.2 reach 25 of float16's 65504; the released weights, whose outliers
        decide, have not been measured.
        """
        if torch.float16 in (manual_cast_dtype, None if manual_cast_dtype else dtype):
            usable = comfy.model_management.should_use_bf16(device)
            manual_cast_dtype = torch.bfloat16 if usable else torch.float32
        self.unet_config["dtype"] = dtype
        self.manual_cast_dtype = manual_cast_dtype

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None) -> Any:
        """The model without weights."""
        return self.model_class(self, device=device)

    def clip_target(self, state_dict: dict[str, Tensor] | None = None) -> Any:
        """What text encoders inside the same checkpoint are made of; None if there is no T5 among them."""
        t5 = self.text_weights(state_dict, T5_KEY)
        shapes = {name: tuple(value.shape) for name, value in t5.items()}
        return self.target_of(t5, t5_config(shapes, "The text encoder"), state_dict) if describe(shapes) is T5 else None

    def text_weights(self, state_dict: Mapping[str, Tensor] | None, part: str) -> dict[str, Tensor]:
        """One text encoder of a checkpoint, under the names of its own file."""
        start = f"{self.text_encoder_key_prefix[0]}{part}.transformer."
        return {name[len(start) :]: value for name, value in (state_dict or {}).items() if name.startswith(start)}

    def target_of(self, t5: dict[str, Tensor], config: T5Config, state_dict: Mapping[str, Tensor] | None) -> Any:
        """ComfyUI's classes for this T5 and what the release reads beside it."""
        return clip_target(t5, config)

    def process_unet_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the file -> names of the modules."""
        return {self.from_checkpoint_key(name): tensor for name, tensor in state_dict.items()}

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the modules -> names of the released file, under ComfyUI's prefix; with the settings as one more."""
        released = {self.to_checkpoint_key(name): tensor for name, tensor in state_dict.items()}
        released[SETTINGS] = to_tensor(self.saved_settings(self.opensora))
        return super().process_unet_state_dict_for_saving(released)


def release_of(model: Any) -> Release | None:
    """The release of a MODEL (``ModelPatcher``); None if it is not an Open-Sora model."""
    inner = getattr(model, "model", None)
    return inner.release if isinstance(inner, OpenSoraBase) else None


def opensora_config(model: Any) -> Any:
    """The network numbers of a MODEL (``ModelPatcher``); None if it is not an Open-Sora model."""
    inner = getattr(model, "model", None)
    return inner.opensora if isinstance(inner, OpenSoraBase) else None
