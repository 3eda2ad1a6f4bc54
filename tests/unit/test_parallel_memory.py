"""What ranks hold of a shared call, counted without doing the arithmetic, against what ComfyUI is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.mmdit import memory as mmdit_memory
from opensora.opensora_models.mmdit.config import RELEASED, MMDiTConfig
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.tokens import reference_features
from opensora.opensora_models.parallel.clips import Clip, MMDiTClip, STDiT3Clip
from opensora.opensora_models.parallel.memory import Sharing
from opensora.opensora_models.parallel.ranks import Ranks
from opensora.opensora_models.parallel.stack import Crew, shared_mmdit, shared_stdit3
from opensora.opensora_models.stdit3.conditions import GivenFrames
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13, STDiT3Config
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.transformer.stack import STACK_HOOK
from support.allocations import Allocations, flash

HONEST = 1.5
"""Most that is told of what is held: clips have shares of unlike sizes, and there is one rule for all."""
TEXT = 60
FLUX = replace(RELEASED, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True)


class Silent(Ranks):
    """One of a group nobody else is in: what is sent is made and what arrives has room, as on a real one."""

    def _all_to_all(self, received: Tensor, sending: Tensor, to_me: list[int], from_me: list[int]) -> None:
        """Nothing travels."""


def crew(rank: int, size: int, device: str) -> Crew:
    place = torch.device(device)
    return Crew(Silent("", rank, size, place=place), lambda name, peer, count: Silent("", peer, count, place=place))


def counted(
    config: STDiT3Config | MMDiTConfig, shape: tuple[int, ...], ranks: int, dtype: torch.dtype, given: bool, device: str
) -> tuple[float, Clip]:
    """Peak bytes of a forward on the rank that holds most; depth does not matter, nothing is kept between blocks."""
    made: dict[str, Any] = {"dtype": dtype, "device": device}
    batch, _, frames, height, width = shape
    x, times = torch.empty(shape, **made), torch.ones(batch, device=device)
    network: STDiT3 | MMDiT
    inputs: dict[str, Any]
    clip: Clip
    if isinstance(config, STDiT3Config):
        grid = (-(-height // 2), -(-width // 2))
        config, clip = replace(config, depth=2), STDiT3Clip(config, frames, grid)
        network, around = STDiT3(config, attention=flash, **made), partial(shared_stdit3, frames=frames, grid=grid)
        text = torch.empty(batch, TEXT, config.caption_channels, **made)
        mask = torch.ones(batch, frames, dtype=torch.bool, device=device) if given else None
        inputs = {"timestep": times, "text": text, "frame_mask": mask, "fps": 24, "height": 8.0, "width": 8.0}
        if given and config.takes_given_frames:
            inputs["given"] = GivenFrames(x.clone(), torch.ones(batch, 1, *shape[2:], **made), [0])
    else:
        clip = MMDiTClip(config, frames * height * width // config.patch_size**2, TEXT)
        config = replace(config, depth=1, depth_single_blocks=2)
        network, around = MMDiT(config, attention=flash, **made), partial(shared_mmdit, text_tokens=TEXT)
        pooled = torch.empty(batch, config.vec_in_dim, **made)
        text = torch.empty(batch, TEXT, config.context_in_dim, **made)
        inputs = {"time": times, "text": text, "pooled": pooled, "guidance": times}
        if given and config.cond_embed:
            inputs["reference"] = reference_features(x.clone(), torch.ones(frames, dtype=torch.bool, device=device))
    known = [each for each in (x, *inputs.values()) if isinstance(each, Tensor)]
    peaks = []
    for rank in range(ranks):
        options = {STACK_HOOK: around(crew(rank, ranks, device), config)}
        with torch.no_grad(), Allocations([*network.parameters(), *network.buffers(), *known]) as allocations:
            network(x, **inputs, transformer_options=options)
        peaks.append(allocations.peak)
    return max(peaks), clip


def blocks(config: STDiT3Config | MMDiTConfig, size: int, device: str, values: float) -> float:
    """As ComfyUI's MODEL is told of one process; of STDiT3 that is in a room that imports ComfyUI."""
    if isinstance(config, MMDiTConfig):
        return mmdit_memory.bytes_of_values(config, values, size, device)
    from opensora.opensora_models.native.memory import bytes_of_values

    return bytes_of_values(values, size, device)


CLIPS: dict[str, tuple[STDiT3Config | MMDiTConfig, tuple[int, ...]]] = {
    "1.2 480p": (XL_V12, (1, 4, 15, 60, 106)),
    "1.2 720p, two rows": (XL_V12, (2, 4, 15, 90, 160)),
    "1.2 image, two rows": (XL_V12, (2, 4, 1, 90, 160)),
    "1.3 240p": (XL_V13, (1, 16, 15, 30, 53)),
    "1.3 720p 113 frames, three rows": (XL_V13, (3, 16, 35, 90, 160)),
    "2.0 256px": (RELEASED, (1, 16, 33, 24, 42)),
    "2.0 256px, two rows": (RELEASED, (2, 16, 33, 24, 42)),
    "2.0 768px, three rows": (RELEASED, (3, 16, 33, 72, 128)),
    "Flux, two rows": (FLUX, (2, 16, 5, 24, 42)),
    "Flux, image": (FLUX, (1, 16, 1, 72, 128)),
}


@pytest.mark.comfy
@pytest.mark.parametrize("given", [False, True], ids=["", "given"])
@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("name", CLIPS)
def test_no_rank_holds_more_than_is_told(comfy: Any, name: str, ranks: int, given: bool) -> None:
    """On the meta device the networks take the way they take on an accelerator, and nothing is computed."""
    config, shape = CLIPS[name]
    for dtype in (torch.bfloat16, torch.float32):
        peak, clip = counted(config, shape, ranks, dtype, given, "meta")
        size = dtype.itemsize
        told = Sharing(ranks).bytes_of_call(shape[0], clip, size, partial(blocks, config, size, "cuda"))
        assert peak <= told <= HONEST * peak, f"{told / peak:.3f}"


@pytest.mark.comfy
@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_nor_on_a_cpu(comfy: Any, version: str) -> None:
    """Where portions are smaller; really computed, so at a smaller width."""
    narrow: dict[str, tuple[STDiT3Config | MMDiTConfig, tuple[int, ...]]] = {
        "1.2": (replace(XL_V12, hidden_size=288, num_heads=4), (2, 4, 9, 36, 64)),
        "1.3": (replace(XL_V13, hidden_size=288, num_heads=4), (2, 16, 9, 36, 64)),
        "2.0": (replace(RELEASED, hidden_size=512, num_heads=4), (2, 16, 5, 24, 42)),
    }
    config, shape = narrow[version]
    for ranks in (2, 4):
        peak, clip = counted(config, shape, ranks, torch.float32, True, "cpu")
        told = Sharing(ranks).bytes_of_call(shape[0], clip, 4, partial(blocks, config, 4, "cpu"))
        assert peak <= told <= 1.7 * peak, f"{told / peak:.3f}"


def test_a_share_is_told_as_less_than_the_whole() -> None:
    """And what a rank waits for that the plan has no use for costs it nothing more."""
    clip = MMDiTClip(RELEASED, 76032, 512)
    both = partial(mmdit_memory.bytes_of_values, RELEASED, dtype_size=2)
    whole, *shared = (Sharing(ranks).bytes_of_call(2, clip, 2, lambda values: both(values)) for ranks in (1, 2, 4, 8))
    assert whole > shared[0] > shared[1] > shared[2] > whole / 8
