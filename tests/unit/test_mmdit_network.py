"""What MMDiT promises its callers beyond numbers: rows, portions, layouts, modulations, hooks, gradients, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.mmdit.config import MMDiTConfig
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.positions import interleaving
from opensora.opensora_models.mmdit.tokens import image_ids, pack, reference_features, token_grid, unpack
from opensora.opensora_models.transformer.attention import plain_attention

SPLIT = MMDiTConfig(
    in_channels=16,
    vec_in_dim=12,
    context_in_dim=20,
    hidden_size=48,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=(4, 10, 10),
)
FLUX = replace(SPLIT, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True)
COMPRESSED = replace(SPLIT, in_channels=10, patch_size=1, mlp_ratio=2.5)
ALL = pytest.mark.parametrize("config", [SPLIT, FLUX, COMPRESSED], ids=["split", "flux", "patch 1"])
SAME = {"atol": 3e-6, "rtol": 1e-5}


def filled(config: MMDiTConfig) -> MMDiT:
    """A network with seeded weights large enough for every part to matter."""
    network = MMDiT(config).eval()
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * spread + float("norm" in key))
    return network


def arguments(config: MMDiTConfig, rows: int = 2, **changes: Any) -> dict[str, Any]:
    """Seeded inputs of unlike rows."""
    generator = torch.Generator().manual_seed(5)
    shape = (3, 4, 6)
    inputs: dict[str, Any] = {
        "x": torch.randn(rows, config.channels, *shape, generator=generator),
        "time": torch.linspace(0.9, 0.2, rows),
        "text": torch.randn(rows, 5, config.context_in_dim, generator=generator),
        "pooled": torch.randn(rows, config.vec_in_dim, generator=generator),
    }
    if config.cond_embed:
        given = torch.tensor([1.0, 0.0, 1.0])
        inputs["reference"] = reference_features(torch.randn(inputs["x"].shape, generator=generator), given)
    if config.guidance_embed:
        inputs["guidance"] = torch.linspace(4.0, 3.5, rows)
    return inputs | changes


@ALL
@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(config: MMDiTConfig) -> None:
    network, both = filled(config), arguments(config)
    together = network(**both)
    for row in range(2):
        alone = network(**{key: value[row : row + 1] for key, value in both.items()})
        torch.testing.assert_close(alone, together[row : row + 1], **SAME)


@ALL
def test_the_way_with_gradients_gives_the_same_numbers_and_reaches_everything(config: MMDiTConfig) -> None:
    network, inputs = filled(config), arguments(config)
    with torch.no_grad():
        plain = network(**inputs)
    before = {key: value.clone() for key, value in inputs.items()}
    x = inputs["x"].requires_grad_()
    out = network(**inputs)
    torch.testing.assert_close(out.detach(), plain, **SAME)
    out.square().mean().backward()
    assert all(torch.equal(inputs[key], value) for key, value in before.items())
    assert x.grad is not None and x.grad.abs().min() > 0
    unused = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unused == set()


@ALL
@torch.no_grad()
def test_small_portions_give_the_same_numbers(config: MMDiTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = filled(config), arguments(config)
    whole = network(**inputs)
    monkeypatch.setattr("opensora.opensora_models.mmdit.blocks.GELU_PIECE", 1000)
    for most in (1, 7 * 48 * 2):
        monkeypatch.setattr("opensora.opensora_models.mmdit.portions.MOST_ELEMENTS", {"cpu": most})
        torch.testing.assert_close(network(**inputs), whole, **SAME)
        with torch.enable_grad():
            torch.testing.assert_close(network(**inputs), whole, **SAME)


@torch.no_grad()
def test_the_gelu_of_an_accelerator_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = filled(SPLIT), arguments(SPLIT)
    plain = network(**inputs)
    in_place = lambda x: torch.ops.aten.gelu_(x, approximate="tanh")  # noqa: E731
    monkeypatch.setattr("opensora.opensora_models.mmdit.blocks.gelu_over", in_place)
    torch.testing.assert_close(network(**inputs), plain, **SAME)


def joined_projections(network: MMDiT) -> dict[str, Tensor]:
    """The weights of a network with split projections as those of one with fused projections."""
    state = network.state_dict()
    for key in [key for key in state if ".q_proj." in key]:
        stem, name = key.split(".q_proj.")
        rest, joined = ("v_proj", "qkv") if f"{stem}.v_proj.{name}" in state else ("v_mlp", "linear1")
        parts = [state.pop(f"{stem}.{layer}.{name}") for layer in ("q_proj", "k_proj", rest)]
        state[f"{stem}.{joined}.{name}"] = torch.cat(parts)
    return state


@pytest.mark.parametrize("rotation", ["half-split", "interleaved"])
@torch.no_grad()
def test_fused_projections_are_the_split_ones_joined(rotation: Any) -> None:
    split = filled(replace(SPLIT, rotation=rotation))
    fused = MMDiT(replace(SPLIT, rotation=rotation, fused_qkv=True))
    fused.load_state_dict(joined_projections(split))
    inputs = arguments(SPLIT)
    torch.testing.assert_close(fused(**inputs), split(**inputs), **SAME)


@torch.no_grad()
def test_half_split_becomes_interleaved_by_reordering_heads() -> None:
    network, inputs = filled(SPLIT), arguments(SPLIT)
    other, state = MMDiT(replace(SPLIT, rotation="interleaved")), network.state_dict()
    order = interleaving(SPLIT.head_dim)
    for key, value in state.items():
        if ".q_proj." in key or ".k_proj." in key:
            state[key] = value.unflatten(0, (SPLIT.num_heads, -1))[:, order].flatten(0, 1)
        elif "_norm." in key:
            state[key] = value[order]
    other.load_state_dict(state)
    torch.testing.assert_close(other(**inputs), network(**inputs), **SAME)
    other.load_state_dict(network.state_dict())
    assert (other(**inputs) - network(**inputs)).abs().max() > 1e-2  # the wrong layout is another function


@ALL
@torch.no_grad()
def test_modulations_of_a_whole_run_replace_time_and_pooled_text(config: MMDiTConfig) -> None:
    network, inputs = filled(config), arguments(config)
    times = torch.linspace(1, 0.1, 7)
    pooled, guidance = inputs["pooled"][:1], torch.full((1,), 4.0)
    run = network.modulations(network.vector(times, pooled, guidance if config.guidance_embed else None))
    layers = list(network.modulation_layers())
    weights = [layer.weight.data for layer in layers]
    for step in (0, 3, 6):
        now = inputs | {"time": times[step : step + 1], "pooled": pooled}
        if config.guidance_embed:
            now["guidance"] = guidance
        want = network(**now)
        for layer in layers:
            layer.weight.data = torch.full((1, 1), torch.nan)  # gone while the blocks run
        got = network(**(now | {"time": None, "pooled": None}), modulations=run.rows([step, step]))
        assert (got - want).norm() <= 1e-6 * want.norm()
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight


def test_the_layers_of_modulation_are_a_good_quarter_of_the_released_weights() -> None:
    network = MMDiT(MMDiTConfig(), device="meta")
    share = sum(layer.weight.numel() + layer.bias.numel() for layer in network.modulation_layers())
    assert share / sum(weight.numel() for weight in network.parameters()) == pytest.approx(0.273, abs=0.001)


@torch.no_grad()
def test_no_reference_is_a_reference_of_zeros_whose_bias_counts() -> None:
    network, inputs = filled(SPLIT), arguments(SPLIT)
    zeros = torch.zeros_like(inputs["reference"])
    nothing = network(**(inputs | {"reference": None}))
    torch.testing.assert_close(nothing, network(**(inputs | {"reference": zeros})), **SAME)
    network.cond_in.bias[::3] += 1
    assert (network(**(inputs | {"reference": None})) - nothing).abs().max() > 1e-2


@torch.no_grad()
def test_the_time_is_seen_in_bfloat16_unless_told_otherwise() -> None:
    inputs = arguments(SPLIT)
    rounded, exact = filled(SPLIT), filled(replace(SPLIT, round_time=False))
    odd = inputs | {"time": torch.tensor([0.6137])}
    seen = inputs | {"time": torch.tensor([0.612])}
    torch.testing.assert_close(rounded(**odd), rounded(**(inputs | {"time": torch.tensor([0.61328125])})), **SAME)
    torch.testing.assert_close(rounded(**odd), exact(**seen), atol=1e-4, rtol=1e-4)
    assert (rounded(**odd) - exact(**odd)).abs().max() > 1e-2


@ALL
@torch.no_grad()
def test_attention_and_hooks_learn_where_they_are(config: MMDiTConfig) -> None:
    network, calls = filled(config), []

    def attention(*args: Any, transformer_options: dict[str, Any], **options: Any) -> Tensor:
        calls.append(tuple(transformer_options[key] for key in ("block_type", "block_index", "total_blocks")))
        return plain_attention(*args, **options)

    options = {"mine": "kept"}
    network.attention = attention
    network(**arguments(config, transformer_options=options))
    assert calls == [(kind, index, 2) for kind in ("double", "single") for index in (0, 1)]
    assert options == {"mine": "kept"}  # the caller's dict is not written to


@ALL
@torch.no_grad()
def test_block_replacement_and_patches_after_a_block(config: MMDiTConfig) -> None:
    network, seen, before = filled(config), [], []

    def through(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        options = args["transformer_options"]
        seen.append((options["block_type"], options["block_index"], tuple(args["img"].shape), "txt" in args))
        kept = args["img"].clone()
        out = extra["original_block"](args)
        before.append(torch.equal(args["img"], kept))  # a patch may compare with what it was given
        return out

    def after(args: dict[str, Any]) -> dict[str, Any]:
        seen.append(args["block_index"])
        return args

    inputs = arguments(config)
    plain = network(**inputs)
    replaced = {("double_block", 1): through, ("single_block", 0): through}
    patched = {"patches_replace": {"dit": replaced}, "patches": {"double_block": [after], "single_block": [after]}}
    assert torch.equal(network(**inputs, transformer_options=patched), plain)
    count = 3 * 4 * 6 // config.patch_size**2
    double, single = ("double", 1, (2, count, 48), True), ("single", 0, (2, count + 5, 48), False)
    assert seen == [0, double, 1, single, 0, 1] and before == [True, True]


@torch.no_grad()
def test_a_skipped_block_is_not_called_at_all() -> None:
    network, inputs = filled(SPLIT), arguments(SPLIT)
    skip = {("double_block", 1): lambda args, _: args, ("single_block", 1): lambda args, _: args}
    without = filled(SPLIT)
    del without.double_blocks[1], without.single_blocks[1]
    network.double_blocks[1].register_forward_pre_hook(lambda *_: pytest.fail("called"))
    network.single_blocks[1].register_forward_pre_hook(lambda *_: pytest.fail("called"))
    got = network(**inputs, transformer_options={"patches_replace": {"dit": skip}})
    torch.testing.assert_close(got, without(**inputs), **SAME)


@torch.no_grad()
def test_a_patch_may_change_what_a_block_sees() -> None:
    network, inputs = filled(SPLIT), arguments(SPLIT)

    def stronger(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"](args | {"img": args["img"] * 2})

    for name in ("double_block", "single_block"):
        patched = {"patches_replace": {"dit": {(name, 0): stronger}}}
        assert (network(**inputs, transformer_options=patched) - network(**inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_tokens_are_latents_in_another_order(patch: int) -> None:
    latents = torch.arange(2.0 * 3 * 2 * 6 * 12).view(2, 3, 2, 6, 12)
    tokens, grid = pack(latents, patch), token_grid(latents, patch)
    assert torch.equal(unpack(tokens, grid, patch), latents)
    frame, row, column = image_ids(grid)[-1].int().tolist()
    corner = latents[1, :, frame, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(tokens[1, -1], corner.flatten())


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (SPLIT, {"x": torch.zeros(2, 16, 3, 4, 6)}, r"takes latents \[B, 4, T, h, w\], not \[2, 16, 3, 4, 6\]"),
        (SPLIT, {"x": torch.zeros(4, 3, 4, 6)}, r"takes latents \[B, 4, T, h, w\]"),
        (SPLIT, {"x": torch.zeros(2, 4, 3, 5, 7), "reference": None}, r"nearest good size is 4x8"),
        (SPLIT, {"text": torch.zeros(1, 5, 20)}, r"text states \[2, tokens, 20\], not \[1, 5, 20\]"),
        (SPLIT, {"text": torch.zeros(2, 5, 24)}, r"text states \[2, tokens, 20\]"),
        (SPLIT, {"pooled": torch.zeros(2, 8)}, "pooled text state is 8 wide, but this model reads 12"),
        (SPLIT, {"pooled": None}, "needs a time, a pooled text state, or finished modulations"),
        (FLUX, {"guidance": None}, "and a guidance scale"),
        (FLUX, {"reference": torch.zeros(2, 5, 3, 4, 6)}, "no reference input"),
        (SPLIT, {"reference": torch.zeros(2, 4, 3, 4, 6)}, r"must be \[2, 5, 3, 4, 6\]"),
        (SPLIT, {"time": torch.zeros(3)}, r"3 row\(s\) cannot be tiled to 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(config: MMDiTConfig, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        MMDiT(config)(**arguments(config, **changes))
    assert "\n" not in str(error.value)


def test_upstreams_rounding_is_nearer_to_the_recorded_bfloat16() -> None:
    from golden.families.mmdit import network_of
    from golden.runner import load_case
    from opensora.opensora_models.mmdit.upstream import UpstreamHeads
    from support.pack import PACK_ROOT

    case = load_case(PACK_ROOT / "tests" / "golden" / "cases" / "v2" / "mmdit_bf16.safetensors")
    network, img, text = network_of(case, case.config), case.need("img"), case.need("txt")
    ids, away = torch.cat([case.need("txt_ids"), case.need("img_ids")], dim=1).float(), []
    for arithmetic in (network.arithmetic, UpstreamHeads()):
        network.arithmetic = arithmetic
        with torch.no_grad():
            vector = network.vector(case.need("timesteps"), case.need("y_vec"), rows=img.shape[0], dtype=img.dtype)
            got = network.velocity(img, text, ids, network.modulations(vector), reference=case.input("cond")).float()
        want = case.expected["velocity"].float()
        away.append(float((got - want).norm() / want.norm()))
    assert away[1] < away[0] < 0.01


@ALL
@torch.no_grad()
def test_stack_hook_surrounds_all_blocks(config: MMDiTConfig) -> None:
    network, kept = filled(config), {}

    def remember(x: Tensor, modulation: Tensor, run: Any) -> Tensor:
        out = run(x.clone())
        kept.update(residual=out - x, shapes=(tuple(x.shape), tuple(modulation.shape)))
        return out

    plain = network(**arguments(config))
    assert torch.equal(network(**arguments(config, transformer_options={"opensora_stack_hook": remember})), plain)
    tokens = plain[0, 0].numel() // config.patch_size**2
    assert kept["shapes"] == ((2, tokens, config.hidden_size), (2, 2, config.hidden_size))
    network.double_blocks = network.single_blocks = None  # nothing of them may be needed
    network._doubles = network._singles = list  # type: ignore[method-assign]
    reuse = {"opensora_stack_hook": lambda x, modulation, run: x + kept["residual"]}
    again = network(**arguments(config, transformer_options=reuse))
    torch.testing.assert_close(again, plain, atol=5e-6, rtol=1e-5)
