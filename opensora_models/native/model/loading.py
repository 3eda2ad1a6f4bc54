"""From a file to ComfyUI's MODEL: nothing heavy is read before the file is known to fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...checkpoint.opening import Checkpoint, expect_kind, expect_shapes, expect_weights, open_checkpoint
from ...checkpoint.reading import reading
from ...checkpoint.settings import Choices
from ...messages.quoting import quoted
from ...stdit3.keys import TABLE
from ..messages import tell
from ..previews.sending import show_runs
from .base_model import OpenSoraBase, OpenSoraConfigBase
from .empty_start import watch
from .families import EXPECTED, FAMILIES, Family
from .latent_formats import LATENT_FORMATS
from .modulations_apart import keep_apart
from .quantised import is_quantised, quantised_weights
from .speed import measure
from .written_back import add_to

logger = logging.getLogger("opensora")

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# In 8 bits a bias, norm or table loses more than it saves: all of them together are below one percent of the file.
SMALL_TENSORS_DTYPE = torch.bfloat16


def load_model(
    path: str | Path,
    weight_dtype: str = "default",
    choices: Choices | None = None,
    as_upstream: bool = False,
    custom_operations: Any = None,
    modulations_apart: bool = False,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """The MODEL of a checkpoint file or folder.

    Args:
        path: a weight file, a folder of shards, or one of its shards.
        weight_dtype: how weights are kept in memory, a key of ``WEIGHT_DTYPES``; "default" lets ComfyUI decide.
        choices: a person's own settings for what the weights cannot tell.
        as_upstream: repeat the rounding of the original bfloat16 program instead of computing accurately.
        custom_operations: layer classes in the style of ``comfy.ops``, for packs that store weights their own way.
        modulations_apart: 2.0 only: keep the modulation layers off the device and compute them once per run.
        disable_dynamic: ComfyUI asks for this when it needs a patcher without weight streaming.

    Raises:
        ValueError: the file is no diffusion model of Open-Sora 1.2, 1.3 or 2.0, or is damaged; one sentence says how.
    """
    checkpoint = open_checkpoint(path)
    family = FAMILIES[expect_kind(checkpoint, FAMILIES, EXPECTED)]
    if modulations_apart and not family.config_class.modulations_may_leave:
        raise ValueError(
            f"{checkpoint.quoted} is an Open-Sora {family.release} model, which has no modulation layers to compute "
            "once per run; leave modulations in the network."
        )
    with reading(checkpoint.name):
        network = _network_config(checkpoint, family, choices)
        config = family.model_config(network, as_upstream)
    patcher = _build(checkpoint, config, weight_dtype, custom_operations, disable_dynamic)
    # ComfyUI makes further copies (several GPUs, training, no streaming) by calling this again.
    arguments = (str(path), weight_dtype, choices, as_upstream, custom_operations, modulations_apart)
    patcher.cached_patcher_init = (load_model, arguments)
    if modulations_apart:
        keep_apart(patcher)
    logger.info("%s: %s, %s, %s.", checkpoint.quoted, config.release.title, network, patcher.model.get_dtype())
    return patcher


def _network_config(checkpoint: Checkpoint, family: Family, choices: Choices | None) -> Any:
    """Reads the config off the shapes and holds the file against it."""
    try:
        config = family.network_config(checkpoint.shapes)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.quoted} looks like {checkpoint.kind.title} but is incomplete: {error}"
        ) from error
    wanted_channels = LATENT_FORMATS[family.release].latent_channels
    if config.channels != wanted_channels:
        raise ValueError(
            f"{checkpoint.quoted} looks like {checkpoint.kind.title} for latents of {config.channels} channels; "
            f"expected {wanted_channels}, those of the Open-Sora {family.release} autoencoder."
        )
    wanted = family.config_class.released_shapes(config)
    if is_quantised(checkpoint):
        # Packed formats have shapes of their own; only the names can be checked.
        expect_shapes(checkpoint, {name: checkpoint.shapes.get(name, shape) for name, shape in wanted.items()})
    else:
        unused = expect_shapes(checkpoint, wanted)
        expect_weights(checkpoint, wanted)
        if unused:
            tell(f"{checkpoint.quoted} has {len(unused)} tensors that are not used, for example {quoted(unused[0])}.")
    return family.complete(config, checkpoint.settings(), choices)


def _build(
    checkpoint: Checkpoint,
    config: OpenSoraConfigBase,
    weight_dtype: str,
    custom_operations: Any,
    disable_dynamic: bool,
) -> ModelPatcher:
    load_device = comfy.model_management.get_torch_device()
    config.custom_operations = custom_operations
    weights: dict[str, Tensor] | None = None
    if is_quantised(checkpoint):
        weights, config.quant_config = quantised_weights(checkpoint)
    _choose_dtypes(config, checkpoint, weight_dtype, load_device)
    # Without storage, so that the weights of the file become the weights of the model and exist once. Quantised and
    # custom layers place their weights on the device they were made on and need a real one.
    plain = weights is None and custom_operations is None
    model = config.get_model({}, device=torch.device("meta") if plain else None)
    patcher_class = ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=comfy.model_management.unet_offload_device())
    if weights is None:
        weights = checkpoint.load(_storage_dtypes(model) if plain else None)
    with reading(checkpoint.name):
        model.load_model_weights(weights, assign=plain or patcher.is_dynamic())
    _after_loading(model, patcher)
    return patcher


def _choose_dtypes(config: OpenSoraConfigBase, checkpoint: Checkpoint, weight_dtype: str, device: torch.device) -> None:
    """How weights are stored and in what they are computed, as ComfyUI's own loader decides it."""
    stored = WEIGHT_DTYPES[_known_dtype(weight_dtype)]
    supported = config.supported_inference_dtypes
    if config.quant_config is not None:
        if stored is not None:
            raise ValueError(f"{checkpoint.quoted} is quantised already; leave the weight dtype on default.")
        dtype = comfy.model_management.unet_dtype(model_params=_parameters(checkpoint), supported_dtypes=supported)
        config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(None, device, supported), device)
        return
    if stored is None:
        stored = comfy.model_management.unet_dtype(
            model_params=_parameters(checkpoint), supported_dtypes=supported, weight_dtype=_main_dtype(checkpoint)
        )
    config.set_inference_dtype(stored, comfy.model_management.unet_manual_cast(stored, device, supported), device)


def _known_dtype(weight_dtype: str) -> str:
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"The weight dtype is {weight_dtype!r}; expected one of {', '.join(WEIGHT_DTYPES)}.")
    return weight_dtype


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(info.elements for info in checkpoint.tensors.values())


def _main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype most of the weights have."""
    counts: dict[torch.dtype, int] = {}
    for info in checkpoint.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.elements
    return max(counts, key=counts.__getitem__)


def _storage_dtypes(model: OpenSoraBase) -> Callable[[str, Tensor], Tensor]:
    """Brings each tensor to the dtype its place in the model was made with, as it is read."""
    own: Mapping[str, Tensor] = model.diffusion_model.state_dict()
    wanted = {model.model_config.to_checkpoint_key(name): tensor.dtype for name, tensor in own.items()}

    def convert(name: str, tensor: Tensor) -> Tensor:
        dtype = wanted.get(name, tensor.dtype)
        if dtype.itemsize == 1 and _is_small(name, tensor):
            dtype = SMALL_TENSORS_DTYPE
        return tensor.to(dtype)

    return convert


def _is_small(name: str, tensor: Tensor) -> bool:
    return tensor.ndim < 2 or name.endswith((TABLE, "y_embedding"))


def _note_small_dtypes(model: OpenSoraBase) -> None:
    """Correct the dtypes that streamed weights are brought to on the device: ComfyUI noted those of the empty model."""
    network = model.diffusion_model
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        path, _, last = name.rpartition(".")
        layer, note = network.get_submodule(path), f"{last}_comfy_model_dtype"
        noted = getattr(layer, note, None)
        eight_bit = noted is not None and noted.is_floating_point and noted.itemsize == 1
        if eight_bit and _is_small(model.model_config.to_checkpoint_key(name), tensor):
            setattr(layer, note, SMALL_TENSORS_DTYPE)


def _after_loading(model: OpenSoraBase, patcher: ModelPatcher) -> None:
    model.diffusion_model.requires_grad_(False)
    if patcher.is_dynamic():
        _note_small_dtypes(model)
    else:
        # ComfyUI noted the dtypes of the empty model; small tensors of 8-bit models have another one.
        getattr(comfy.model_management, "archive_model_dtypes", lambda module: None)(model.diffusion_model)
    add_to(patcher)
    measure(patcher)
    watch(patcher)
    show_runs(patcher)
    config = model.model_config
    if config.denoise_mask_function is not None:
        patcher.set_model_denoise_mask_function(config.denoise_mask_function)
    if config.unet_config["as_upstream"]:
        patcher.set_model_compute_dtype(torch.bfloat16)
