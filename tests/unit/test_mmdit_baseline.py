"""MMDiT against a straightforward rewrite that shares nothing with it but the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opensora.benchmarks._mmdit_baseline import Baseline
from opensora.opensora_models.mmdit.config import MMDiTConfig
from opensora.opensora_models.mmdit.keys import to_checkpoint_key
from opensora.opensora_models.mmdit.network import MMDiT

SPLIT = MMDiTConfig(
    in_channels=16,
    vec_in_dim=12,
    context_in_dim=20,
    hidden_size=48,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=(4, 10, 10),
)
FORMS = {
    "released": SPLIT,
    "high compression": replace(SPLIT, in_channels=10, patch_size=1),
    "flux": replace(SPLIT, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True),
    "everything": replace(SPLIT, fused_qkv=True, guidance_embed=True, mlp_ratio=2.5, round_time=False),
    "split interleaved": replace(SPLIT, rotation="interleaved", qkv_bias=False, theta=500),
    "other axes": replace(SPLIT, axes_dim=(8, 6, 10), num_heads=2, patch_size=4, in_channels=32),
    "double blocks alone": replace(SPLIT, depth_single_blocks=0),
    "single blocks alone": replace(SPLIT, depth=0, fused_qkv=True),
}


@pytest.mark.parametrize("size", [(3, 12, 20), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_straightforward_formulas(form: str, size: tuple[int, int, int]) -> None:
    torch.manual_seed(7)
    config = FORMS[form]
    network = MMDiT(config).eval()
    for key, value in network.state_dict().items():
        value.normal_(float("_norm" in key), 0.1 if value.ndim < 2 else value[0].numel() ** -0.5)
    baseline = Baseline(config, {to_checkpoint_key(key): value for key, value in network.state_dict().items()})
    arguments = {
        "x": torch.randn(2, config.channels, *size),
        "time": torch.tensor([0.7033, 0.12]),
        "text": torch.randn(2, 9, 20),
        "pooled": torch.randn(2, 12),
        "reference": torch.randn(2, 1 + config.channels, *size) if config.cond_embed else None,
        "guidance": torch.tensor([4.0, 3.5]) if config.guidance_embed else None,
    }
    for reference in {None, "given"} if config.cond_embed else {None}:
        inputs = arguments if reference else {**arguments, "reference": None}
        with torch.no_grad():
            got, want = network(**inputs), baseline(**inputs)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
