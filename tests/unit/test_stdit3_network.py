"""What the network promises its callers beyond numbers: rows, hooks, gradients, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opensora.opensora_models.stdit3.blocks import Mlp
from opensora.opensora_models.stdit3.conditions import kept_tokens
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.network import GivenFrames, STDiT3
from opensora.opensora_models.transformer.attention import plain_attention
from opensora.opensora_models.transformer.gelu import gelu_tanh
from opensora.opensora_models.transformer.rows import tile_rows

TINY = {"depth": 2, "hidden_size": 48, "caption_channels": 32, "model_max_length": 20}
V12 = STDiT3Config(num_heads=4, **TINY)
V13 = STDiT3Config(version="1.3", num_heads=2, in_channels=16, kernel_size=(8, 8, -1), use_spatial_rope=True, **TINY)
BOTH = pytest.mark.parametrize("config", [V12, V13], ids=["v1.2", "v1.3"])


def filled(config: STDiT3Config) -> STDiT3:
    """A network with seeded weights large enough for every part to matter."""
    network = STDiT3(config).eval()
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * spread + float("norm" in key))
    return network


def arguments(config: STDiT3Config, rows: int = 2, **changes: Any) -> dict[str, Any]:
    """Seeded inputs; the texts of the rows differ in length."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, config.in_channels, 3, 5, 18, generator=generator)
    text = [torch.randn(4 + 3 * row, config.caption_channels, generator=generator) for row in range(rows)]
    timestep = torch.linspace(700, 90, rows)
    return {"x": x, "timestep": timestep, "text": text, "fps": 24, "height": 40, "width": 144} | changes


def given_frames(config: STDiT3Config, rows: int = 2, **changes: Any) -> GivenFrames:
    """Frames 0 and 2 of 3."""
    latents = torch.randn(rows, config.in_channels, 3, 5, 18, generator=torch.Generator().manual_seed(6))
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 3, 1, 1).expand(rows, 1, 3, 5, 18)
    return GivenFrames(**({"latents": latents, "mask": mask, "indices": [0, 2]} | changes))


@BOTH
@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(config: STDiT3Config) -> None:
    network, both = filled(config), arguments(config)
    together = network(**both)
    for row in range(2):
        alone = {
            key: value[row : row + 1] if key in ("x", "timestep", "text") else value for key, value in both.items()
        }
        torch.testing.assert_close(network(**alone), together[row : row + 1], atol=2e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_text_may_be_one_tensor(config: STDiT3Config) -> None:
    network, text = filled(config), torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    as_list = network(**arguments(config, text=list(text)))
    assert torch.equal(network(**arguments(config, text=text)), as_list)


@BOTH
@torch.no_grad()
def test_frame_mask_of_ordinary_frames_changes_nothing_and_a_clean_frame_does(config: STDiT3Config) -> None:
    network, mask = filled(config), torch.ones(2, 3, dtype=torch.bool)
    plain = network(**arguments(config))
    torch.testing.assert_close(network(**arguments(config, frame_mask=mask)), plain, atol=2e-6, rtol=1e-5)
    mask[1, 2] = False
    masked = network(**arguments(config, frame_mask=mask))
    torch.testing.assert_close(masked[0], plain[0], atol=2e-6, rtol=1e-5)
    assert (masked[1] - plain[1]).abs().amax(dim=(0, 2, 3)).min() > 1e-3  # other frames notice through attention


@torch.no_grad()
def test_given_frames_see_the_null_text_of_the_network_unless_told_another() -> None:
    network, frames = filled(V13), given_frames(V13)
    own = network(**arguments(V13, given=frames))
    null = [network.y_embedder.y_embedding[:4], network.y_embedder.y_embedding[:7]]
    told = network(**arguments(V13, given=given_frames(V13, null_text=null)))
    assert torch.equal(own, told)
    other = network(**arguments(V13, given=given_frames(V13, null_text=[row + 1 for row in null])))
    assert (own - other).abs().max() > 1e-3


@BOTH
def test_inputs_stay_as_they_were_and_gradients_reach_them(config: STDiT3Config) -> None:
    network = filled(config)
    inputs = arguments(config, frame_mask=torch.tensor([[True, False, True]] * 2))
    if config is V13:
        inputs["given"] = given_frames(V13)
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
    x = inputs["x"].requires_grad_()
    network(**inputs).square().mean().backward()
    assert all(torch.equal(inputs[key], value) for key, value in before.items())
    assert x.grad is not None and x.grad.abs().min() > 0
    unused = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unused == set()


@BOTH
@torch.no_grad()
def test_gradient_mode_and_small_portions_give_the_same_numbers(
    config: STDiT3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs = filled(config), arguments(config)
    whole = network(**inputs)
    monkeypatch.setattr("opensora.opensora_models.stdit3.portions.MOST_ELEMENTS", {"cpu": 5 * 192})
    torch.testing.assert_close(network(**inputs), whole, atol=2e-6, rtol=1e-5)
    with torch.enable_grad():
        torch.testing.assert_close(network(**inputs), whole, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_attention_over_time_gives_the_same_for_rows_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs, calls = filled(V12), arguments(V12), []

    def counting(*args: Any, **options: Any) -> Tensor:
        calls.append(args[0].shape)
        return plain_attention(*args, **options)

    network.attention = counting
    together = network(**inputs)
    few = len(calls)
    monkeypatch.setattr("opensora.opensora_models.stdit3.attention.MOST_COPIED", 0)
    torch.testing.assert_close(network(**inputs), together, atol=2e-6, rtol=1e-5)
    assert len(calls) - few == few + V12.depth * (len(inputs["x"]) - 1)


@torch.no_grad()
def test_mlp_never_holds_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora.opensora_models.stdit3.portions.MOST_ELEMENTS", {"cpu": 10 * 192})
    mlp, seen = Mlp(V12, torch.nn, None, None), []
    mlp.fc1.register_forward_hook(lambda _module, _inputs, out: seen.append(out.numel()))
    mlp(torch.randn(2, 3, 7, 48))
    assert len(seen) == 5 and max(seen) <= 10 * 192 and sum(seen) == 42 * 192


@torch.no_grad()
def test_sigmoid_form_of_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora.opensora_models.transformer.gelu.GELU_PIECE", 1000)
    x = torch.linspace(-30, 30, 20002).view(2, 73, 137)
    for numbers in (x, x.transpose(0, 2)):
        want = F.gelu(numbers, approximate="tanh")
        torch.testing.assert_close(gelu_tanh(numbers.clone()), want, atol=1e-6, rtol=1e-6)
    exact, small = F.gelu(x.bfloat16().double(), approximate="tanh"), gelu_tanh(x.bfloat16())
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.double(), exact, atol=1e-6, rtol=2**-8)  # half a step: rounded once
    assert torch.equal(gelu_tanh(x.double()), F.gelu(x.double(), approximate="tanh"))


@BOTH
@torch.no_grad()
def test_compiles_into_one_graph(config: STDiT3Config) -> None:
    network, inputs = filled(config), arguments(config, frame_mask=torch.tensor([[True, False, True]] * 2))
    if config is V13:
        inputs["given"] = given_frames(V13)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), network(**inputs), atol=5e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_attention_gets_the_options_of_its_block_and_no_mask(config: STDiT3Config) -> None:
    calls: list[tuple[int, int]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: Any) -> Tensor:
        assert mask is None and q.shape[1] == heads and options["transformer_options"]["mine"] == "kept"
        calls.append((options["transformer_options"]["block_index"], options["transformer_options"]["total_blocks"]))
        return plain_attention(q, k, v, heads, **options)

    network, options = filled(config), {"mine": "kept"}
    network.attention = attention
    network(**arguments(config, transformer_options=options))
    assert sorted(set(calls)) == [(index, 4) for index in range(4)]
    assert options == {"mine": "kept"}  # the caller's dict is not written to


@BOTH
@torch.no_grad()
def test_block_replacement_and_patches_after_a_block(config: STDiT3Config) -> None:
    network, seen = filled(config), []

    def through(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append((args["transformer_options"]["block_index"], tuple(args["img"].shape), tuple(args["vec"].shape)))
        return extra["original_block"](args)

    def after(args: dict[str, Any]) -> dict[str, Any]:
        seen.append(args["block_index"])
        return args

    plain = network(**arguments(config))
    replaced = {("double_block", index): through for index in (1, 2)}
    patched = {"patches_replace": {"dit": replaced}, "patches": {"double_block": [after]}}
    assert torch.equal(network(**arguments(config, transformer_options=patched)), plain)
    block = ((2, 3 * 3 * 9, 48), (2, 1, 6, 48))
    assert seen == [0, (1, *block), 1, (2, *block), 2, 3]
    skipped = {"patches_replace": {"dit": {("double_block", 3): lambda args, _extra: args}}}
    network.temporal_blocks[1] = torch.nn.Identity()  # a skipped block is not called at all
    assert network(**arguments(config, transformer_options=skipped)).shape == plain.shape


@BOTH
@torch.no_grad()
def test_stack_hook_surrounds_all_blocks(config: STDiT3Config) -> None:
    network, kept = filled(config), {}

    def remember(x: Tensor, modulation: Tensor, run: Any) -> Tensor:
        out = run(x)
        kept["residual"] = out - x
        return out

    plain = network(**arguments(config))
    assert torch.equal(network(**arguments(config, transformer_options={"opensora_stack_hook": remember})), plain)
    reuse = {"opensora_stack_hook": lambda x, modulation, run: x + kept["residual"]}
    network.spatial_blocks = network.temporal_blocks = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    again = network(**arguments(config, transformer_options=reuse))
    torch.testing.assert_close(again, plain, atol=5e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_branch_hook_surrounds_every_residual_branch(config: STDiT3Config) -> None:
    network, seen = filled(config), []

    def hook(kind: str, options: dict[str, Any], run: Any) -> Tensor:
        seen.append((options["block_index"], kind))
        return run()

    plain = network(**arguments(config))
    hooked = network(**arguments(config, transformer_options={"opensora_branch_hook": hook}))
    torch.testing.assert_close(hooked, plain, atol=2e-6, rtol=1e-5)
    assert seen == [(index, kind) for index in range(4) for kind in ("attn", "cross", "mlp")]


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (V12, {"x": torch.zeros(2, 16, 3, 4, 4)}, r"takes latents \[B, 4, T, H, W\], not \[2, 16, 3, 4, 4\]"),
        (V13, {"x": torch.zeros(16, 3, 4, 4)}, r"takes latents \[B, 16, T, H, W\]"),
        (V12, {"text": [torch.zeros(3, 32)]}, r"2 row\(s\) of latents need as many texts"),
        (V12, {"text": [torch.zeros(3, 32), torch.zeros(0, 32)]}, r"not lengths \[3, 0\]"),
        (V12, {"given": given_frames(V12)}, "Open-Sora 1.2 has no embedder for given frames"),
        (V13, {"given": given_frames(V13, indices=[0, 3])}, r"given frames \[0, 3\].*0 … 2"),
        (V12, {"timestep": torch.zeros(3)}, r"3 row\(s\) cannot be tiled to 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(config: STDiT3Config, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        STDiT3(config)(**arguments(config, **changes))
    assert "\n" not in str(error.value)


def test_kept_tokens_and_tiling() -> None:
    text, mask = torch.arange(8.0).view(2, 4, 1).repeat(2, 1, 1), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]])
    assert [row.flatten().tolist() for row in kept_tokens(text, mask)] == [[0, 2], [7], [0, 2], [7]]
    assert [len(row) for row in kept_tokens(text[:, None], None)] == [4] * 4
    assert tile_rows(torch.tensor([1, 2]), 4).tolist() == [1, 2, 1, 2]
