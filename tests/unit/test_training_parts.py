"""Parts of training that stand alone: the tiny text encoder, Muon, the moving average, norms, the encoder's code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from golden.runner import load_case, weights_by_rule
from opensora.training import matrix_type as matrix_type_module
from opensora.training import patch_analysis
from opensora.training.average import MovingAverage
from opensora.training.matrix_type import fast_matrices, matrix_type
from opensora.training.muon import Muon, orthogonal
from opensora.training.progress import Progress
from opensora.training.rms_norm import RMSNorm
from opensora.training.text_encoder import TextEncoder, TextEncoderConfig, relative_buckets

TEXT_CASES = Path(__file__).parents[1] / "golden" / "cases" / "text"


def test_the_norm_of_heads_is_that_of_pytorch() -> None:
    mine, torchs = RMSNorm(24, eps=1e-6), torch.nn.RMSNorm(24, eps=1e-6)
    with torch.no_grad():
        mine.weight.normal_(1.0, 0.3)
        torchs.weight.copy_(mine.weight)
    x, towards = torch.randn(2, 5, 3, 24), torch.randn(2, 5, 3, 24)
    found = []
    for norm in (mine, torchs):
        start = x.clone().requires_grad_()
        out = norm(start)
        found.append((out, *torch.autograd.grad((out * towards).sum(), [start, norm.weight])))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)
    assert mine(x.bfloat16()).dtype == torch.float32


def test_rounding_does_not_turn_the_encoders_code_over() -> None:
    features = torch.randn(200, 12, 6, 6, generator=torch.Generator().manual_seed(0))
    features *= torch.linspace(1, 3, 12)[:, None, None]
    rows = patch_analysis._components(features, 12)
    for turned in (-features, features + 1e-6 * torch.randn_like(features), features.flip(0)):
        torch.testing.assert_close(patch_analysis._components(turned, 12), rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["t5_tiny_padded", "t5_tiny_long"])
def test_the_text_encoder_is_a_t5(name: str) -> None:
    case = load_case(TEXT_CASES / f"{name}.safetensors")
    config = case.config
    network = TextEncoder(
        TextEncoderConfig(
            config["vocab_size"], config["d_model"], config["d_ff"], config["num_heads"], config["d_kv"],
            config["num_layers"],
        )
    )  # fmt: skip
    network.load_state_dict(weights_by_rule(network.state_dict(), case))
    with torch.no_grad():
        states = network(case.input("input_ids"), case.input("attention_mask").bool())
    torch.testing.assert_close(states, case.expected["y"][:, 0], rtol=1e-3, atol=1e-4)


def test_relative_buckets_equal_the_recorded_ones() -> None:
    case = load_case(TEXT_CASES / "t5_relative_buckets.safetensors")
    relative = case.input("relative_position")
    buckets = relative_buckets(311)
    got = torch.stack([buckets[0, r] if r > 0 else buckets[-r, 0] for r in relative.tolist()])
    assert torch.equal(got, case.expected["bucket"].to(got))


def test_the_average_follows_the_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    average = MovingAverage(layer, decay=0.5)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    for _ in range(30):
        average.update(layer)
    copy = average.applied_to(torch.nn.Linear(2, 2))
    torch.testing.assert_close(copy.weight, layer.weight, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_replaced_as_a_whole_and_the_log_follows_it(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    for step in range(5):
        progress.write(step, loss=float(step))
    progress.save({"step": 3})
    assert not list(tmp_path.glob("*.partial"))
    assert Progress(tmp_path).load() == {"step": 3}
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="no checkpoint"):
        Progress(tmp_path / "none").read()


def test_orthogonal_changes_keep_their_directions() -> None:
    generator = torch.Generator().manual_seed(5)
    for shape in ((3, 12, 40), (2, 40, 12)):
        made = orthogonal(torch.randn(shape, generator=generator))
        sizes = torch.linalg.svdvals(made)
        assert made.shape == shape and float(sizes.min()) > 0.6 and float(sizes.max()) < 1.3
    diagonal = torch.diag(torch.tensor([3.0, 0.5]))[None]
    assert bool((orthogonal(diagonal)[0].diag() > 0.6).all())


def test_muon_solves_a_small_problem_and_leaves_the_rest_alone() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6)
    goal, inputs, bias = torch.randn(6, 6) / 6**0.5, torch.randn(64, 6), layer.bias.detach().clone()
    muon = Muon([("blocks.0.proj.weight", layer.weight)])
    errors = []
    for step in range(200):
        loss = (layer(inputs) - bias - inputs @ goal.T).square().mean()
        layer.zero_grad()
        loss.backward()
        muon.step(0.1 * (1 - step / 200))
        assert layer.weight.grad is None
        errors.append(loss.item())
    assert errors[-1] < 0.01 * errors[0]
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize(("capability", "wanted"), [("AVX2", torch.float32), ("AVX512", torch.bfloat16)])
def test_matrices_are_multiplied_in_the_type_that_the_machine_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, capability: str, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    with fast_matrices(True):
        assert layer(x).dtype == matrix_type() == wanted
    with fast_matrices(False):
        assert layer(x).dtype == torch.float32
    made = orthogonal(torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(3)))
    strengths = torch.linalg.svdvals(made)
    assert made.dtype == torch.float32 and 0.6 < float(strengths.min()) < float(strengths.max()) < 1.3


def test_nothing_in_training_multiplies_in_a_type_of_its_own_choice() -> None:
    folder = Path(matrix_type_module.__file__).parent
    modules = [path for path in folder.glob("*.py") if path.name != "matrix_type.py"]
    chosen = re.compile(r"autocast\((?![^)]*enabled=False)|@ .*bfloat16\(\)")
    assert [path.name for path in modules if chosen.search(path.read_text(encoding="utf-8"))] == []
    assert chosen.search(Path(matrix_type_module.__file__).read_text(encoding="utf-8")), "the search finds one"
