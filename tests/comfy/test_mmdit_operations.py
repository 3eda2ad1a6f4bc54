"""MMDiT made of ComfyUI's layers and attention: the same numbers, weights cast, stored in 8 bits, or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from golden.families.mmdit import config_of
from golden.runner import Case, fill_by_rule, load_case

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

CASES = Path(__file__).resolve().parents[1] / "golden" / "cases" / "v2"
FORMS = ("mmdit_split_halfsplit_cond", "mmdit_flux_image_guidance", "mmdit_patch1_cond")


def network_with(case: Case, operations: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The case's network of ComfyUI's layers, weights stored in ``dtype``."""
    from comfy.ldm.modules.attention import optimized_attention

    from opensora.opensora_models.mmdit.keys import to_checkpoint_key
    from opensora.opensora_models.mmdit.network import MMDiT

    network = MMDiT(config_of(case.config), operations=operations, attention=optimized_attention)
    fill_by_rule(network, case, to_checkpoint_key)
    return network.to(dtype).eval()


def velocity(case: Case, network: Any) -> torch.Tensor:
    """The case's velocity."""
    img = case.input("img")
    vector = network.vector(
        case.input("timesteps"), case.input("y_vec"), case.input("guidance"), rows=img.shape[0], dtype=img.dtype
    )
    ids = torch.cat([case.input("txt_ids"), case.input("img_ids")], dim=1)
    with torch.no_grad():
        return network.velocity(img, case.input("txt"), ids, network.modulations(vector), reference=case.input("cond"))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("operations", ["disable_weight_init", "manual_cast"])
def test_comfyuis_layers_give_the_recorded_numbers(comfy: Path, name: str, operations: str) -> None:
    import comfy.ops

    case = load_case(CASES / f"{name}.safetensors")
    network = network_with(case, getattr(comfy.ops, operations))
    torch.testing.assert_close(velocity(case, network), case.expected["velocity"], atol=5e-5, rtol=5e-4)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float8_e4m3fn, 0.2)], ids=["bf16", "fp8"])
def test_weights_may_be_stored_in_fewer_bits_than_the_arithmetic(comfy: Path, dtype: torch.dtype, most: float) -> None:
    import comfy.ops

    case = load_case(CASES / f"{FORMS[0]}.safetensors")
    network, want = network_with(case, comfy.ops.manual_cast, dtype), case.expected["velocity"]
    assert (velocity(case, network) - want).norm() / want.norm() < most


def test_a_patch_of_a_weight_is_seen(comfy: Path) -> None:
    """As LoRA and streaming work: a function is put before every use of a weight."""
    import comfy.ops

    case = load_case(CASES / f"{FORMS[0]}.safetensors")
    network = network_with(case, comfy.ops.manual_cast)
    plain = velocity(case, network)
    for name, layer in network.named_modules():
        if not hasattr(layer, "weight_function"):
            continue
        layer.weight_function = [lambda weight: weight * 1.5]
        layer.comfy_cast_weights = True
        assert (velocity(case, network) - plain).abs().max() > 1e-4, name
        layer.weight_function = []
