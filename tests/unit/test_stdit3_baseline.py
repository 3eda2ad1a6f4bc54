"""The network against a straightforward rewrite that shares nothing with it but the weights."""

from __future__ import annotations

import pytest
import torch

from opensora.benchmarks._stdit3_baseline import Baseline
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.keys import to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3

TINY = {"depth": 2, "hidden_size": 48, "caption_channels": 32, "model_max_length": 20}
V12 = STDiT3Config(num_heads=4, **TINY)
V13 = STDiT3Config(version="1.3", num_heads=2, in_channels=16, kernel_size=(8, 8, -1), use_spatial_rope=True, **TINY)


@pytest.mark.parametrize("config", [V12, V13], ids=["v1.2", "v1.3"])
@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("size", [(3, 13, 21), (1, 8, 8), (5, 16, 34)], ids=str)
def test_equals_the_straightforward_formulas(config: STDiT3Config, masked: bool, size: tuple[int, int, int]) -> None:
    torch.manual_seed(7)
    network = STDiT3(config).eval()
    for value in network.state_dict().values():
        value.normal_(0, 0.1 if value.ndim < 2 else value[0].numel() ** -0.5)
    baseline = Baseline(config, {to_checkpoint_key(key): value for key, value in network.state_dict().items()})
    arguments = {
        "x": torch.randn(2, config.in_channels, *size),
        "timestep": torch.tensor([703.3, 12.0]),
        "text": [torch.randn(9, 32), torch.randn(4, 32)],
        "fps": torch.tensor([24.0, 8.0]),
        "height": 8.0 * size[1],
        "width": 8.0 * size[2],
        "frame_mask": torch.rand(2, size[0]) > 0.5 if masked else None,
    }
    with torch.no_grad():
        got, want = network(**arguments), baseline(**arguments)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
