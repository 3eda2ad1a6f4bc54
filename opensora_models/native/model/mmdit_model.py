"""ComfyUI's MODEL for Open-Sora 2.0: the wrapper its samplers talk to, and the config its loaders fill in.

2.0 has one time per sample. So a noise mask on the latent is core's ordinary inpainting, which shows kept frames as
noisy as the others; given frames go into the network's own reference input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.conds
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...checkpoint.opening import checkpoint_of
from ...checkpoint.readers import LoadedTensors
from ...mmdit.config import MMDiTConfig, config_from_shapes
from ...mmdit.keys import from_checkpoint_key, to_checkpoint_key
from ...mmdit.memory import activation_bytes, bytes_of_values
from ...mmdit.network import MMDiT
from ...mmdit.settings import complete, saved_settings
from ...mmdit.tokens import reference_features
from ...parallel.clips import MMDiTClip
from ...releases.arithmetic import mmdit_operations
from ...text.t5_config import T5Config
from ..messages import tell
from ..text.clip_l import clip_l_of, pair_target
from .base_model import OpenSoraBase, OpenSoraConfigBase
from .conds import PerFrame, RowAlone
from .helped import PARALLEL
from .mmdit_network import NativeMMDiT
from .unplaced import attention_patches
from .unread import unread

MOST_TOKENS_TOGETHER = 8192
"""Image and text tokens of a row from which the rows of a step go one by one: a card is busy with one, and ComfyUI
counts weights it could push out as free memory, so that rows together would have them streamed. An assumption, not
measured on a GPU. Patches that may compare rows keep them together."""

ENCODE = "encode the prompt with Open-Sora Load Text Encoder, a T5-XXL and a CLIP-L file chosen"


class MMDiTModel(OpenSoraBase):
    """What ``patcher.model`` is. Documented conditioning keys are listed at :meth:`extra_conds`."""

    def __init__(self, model_config: MMDiTModelConfig, device: torch.device | None = None) -> None:
        super().__init__(model_config, NativeMMDiT, device)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """The network's arguments from one conditioning entry.

        Read from the conditioning: ``cross_attn`` (T5's states [B, L, C], padding included), ``pooled_output``
        (CLIP-L's state [B, P]), ``opensora_given_latent`` [B, C, T, h, w] in the autoencoder's own scale,
        ``opensora_given_frames`` (latent frame numbers) and ``opensora_given_drop``.
        """
        noise, device = kwargs["noise"], kwargs["device"]
        self.check_latents(noise)
        tell(*unread(kwargs, self.release))
        text = self._text(kwargs.get("cross_attn"), kwargs.get("attention_mask"))
        alone = self._tokens(noise, text) > MOST_TOKENS_TOGETHER and not self._rows_wanted()
        kind = RowAlone if alone else comfy.conds.CONDRegular
        conds = {
            "text": kind(text.to(device)),
            "pooled": comfy.conds.CONDRegular(self._pooled(kwargs.get("pooled_output")).to(device)),
        }
        if kwargs.get("opensora_given_latent") is not None or kwargs.get("opensora_given_frames") is not None:
            conds["reference"] = PerFrame(self._reference(kwargs, noise).to(device))
        return conds

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """Shapes of entries that cost memory, for ComfyUI's estimate before anything is on a device."""
        text = kwargs.get("cross_attn")
        return {} if text is None else {"text": [1, *text.shape[1:]]}

    def bytes_of_forward(
        self, shape: list[int], dtype_size: int, device_type: str, cond_shapes: Mapping[str, list[Any]]
    ) -> float:
        """See :meth:`OpenSoraBase.bytes_of_forward`; the longest of the texts counts for all rows."""
        return activation_bytes(self.opensora, shape, self._longest(cond_shapes), dtype_size)

    def bytes_of_values(self, values: float, dtype_size: int, device_type: str) -> float:
        """See :meth:`OpenSoraBase.bytes_of_values`."""
        return bytes_of_values(self.opensora, values, dtype_size)

    def clip_of(self, shape: Sequence[int], cond_shapes: Mapping[str, list[Any]]) -> MMDiTClip:
        """See :meth:`OpenSoraBase.clip_of`."""
        return MMDiTClip(self.opensora, self.tokens_of(shape[2:]), self._longest(cond_shapes))

    def _longest(self, cond_shapes: Mapping[str, list[Any]]) -> int:
        lengths = [each[1] for each in cond_shapes.get("text", ()) if len(each) == 3]
        return max(lengths, default=self.opensora.text_tokens)

    def operations_of_row(self, cells: tuple[int, int, int]) -> float:
        """See :meth:`OpenSoraBase.operations_of_row`."""
        return mmdit_operations(self.opensora)(cells, self.opensora.text_tokens)

    def _rows_wanted(self) -> bool:
        """Whether the rows of a step are wanted together: several devices share them, or patches may compare them."""
        if self.current_patcher is None:
            return False
        shared = self.current_patcher.get_wrappers(WrappersMP.SAMPLER_SAMPLE, PARALLEL)
        return bool(shared or attention_patches(self.current_patcher.model_options.get("transformer_options", {})))

    def _tokens(self, noise: Tensor, text: Tensor) -> int:
        return text.shape[1] + self.tokens_of(noise.shape[2:])

    def tokens_of(self, cells: Sequence[int]) -> int:
        """See :meth:`OpenSoraBase.tokens_of`."""
        patch = self.opensora.patch_size
        frames, height, width = cells
        return frames * -(-height // patch) * -(-width // patch)

    def _text(self, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """States [B, L, C] as they are. Another number of tokens than in training, or masked padding, is told."""
        wanted, title = self.opensora.context_in_dim, self.release.title
        if text is None or text.ndim != 3 or text.shape[2] != wanted:
            found = "no text" if text is None else f"text of shape {list(text.shape)}"
            raise ValueError(
                f"The conditioning holds {found}, but this {title} model reads text [batch, tokens, {wanted}] from a "
                f"T5 encoder; {ENCODE}."
            )
        limit = self.opensora.text_tokens
        if text.shape[1] != limit:
            tell(
                f"The text has {text.shape[1]} tokens where {title} was trained with {limit}, padding included; "
                "Open-Sora Text Encode pads to that length."
            )
        if mask is not None and not bool(mask.bool().all()):
            tell(
                f"The text was encoded with its padding masked, which {title} was not trained with; Open-Sora Text "
                "Encode leaves the padding in for an encoder loaded for 2.0."
            )
        return text

    def _pooled(self, pooled: Tensor | None) -> Tensor:
        wanted = self.opensora.vec_in_dim
        if pooled is None or pooled.ndim != 2 or pooled.shape[1] != wanted:
            found = "no pooled text state" if pooled is None else f"a pooled text state of shape {list(pooled.shape)}"
            raise ValueError(
                f"The conditioning holds {found}, but this {self.release.title} model also reads the pooled state "
                f"[batch, {wanted}] of a CLIP-L encoder; {ENCODE}."
            )
        return pooled

    def _reference(self, kwargs: dict[str, Any], noise: Tensor) -> Tensor:
        """Mask and given latents [1 or B, 1 + C, T, h, w]; all zeros where nothing is given or the row drops it."""
        numbers = self.given_numbers(kwargs, noise.shape[2])
        given = kwargs.get("opensora_given_latent")
        if given is None or not numbers:
            return noise.new_zeros(1, 1 + noise.shape[1], *noise.shape[2:])
        latents = self.given_latents(given, noise)
        features = reference_features(latents, self.given_flags(numbers, noise.shape[2]).flatten())
        if not kwargs.get("opensora_given_drop", False):
            return features
        return torch.cat([features[:, :1] * self.release.given.empty_row_sees_mask, features[:, 1:] * 0], dim=1)


class MMDiTModelConfig(OpenSoraConfigBase):
    """ComfyUI's description of the model while it is being built."""

    unet_config = {"image_model": "opensora_mmdit"}
    model_class = MMDiTModel
    modulations_may_leave = True
    config_from_shapes = staticmethod(config_from_shapes)
    complete = staticmethod(complete)
    saved_settings = staticmethod(saved_settings)
    to_checkpoint_key = staticmethod(to_checkpoint_key)
    from_checkpoint_key = staticmethod(from_checkpoint_key)

    def target_of(self, t5: dict[str, Tensor], config: T5Config, state_dict: Mapping[str, Tensor] | None) -> Any:
        """T5 alone, or with CLIP-L where the checkpoint has one."""
        weights = self.text_weights(state_dict, "clip_l")
        if not weights:
            return super().target_of(t5, config, state_dict)
        checkpoint = checkpoint_of(Path("The checkpoint's CLIP-L"), (LoadedTensors(weights),), {}, ())
        return pair_target(t5, config, clip_l_of(checkpoint))

    @staticmethod
    def empty_network(config: MMDiTConfig) -> nn.Module:
        """The network without memory, of plain layers."""
        return MMDiT(config, operations=nn, device=torch.device("meta"))
