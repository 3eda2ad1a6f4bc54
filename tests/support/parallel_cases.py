"""Clips of tiny random networks that ranks share, and the process that is one of the ranks.

Every rank computes each case alone and together with the others, and notes how far the two are apart (only rank 0 has
the result), what it sent, and the plan. It does so with PyTorch's linear layers and attention, whose roundings depend
on how many tokens are computed at once (other kernels for the last few), and with some that compute every token by
itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .pack import load_pack

load_pack()
from opensora.opensora_models.mmdit.config import MMDiTConfig  # noqa: E402
from opensora.opensora_models.mmdit.network import MMDiT  # noqa: E402
from opensora.opensora_models.mmdit.tokens import reference_features  # noqa: E402
from opensora.opensora_models.parallel.clips import MMDiTClip, STDiT3Clip  # noqa: E402
from opensora.opensora_models.parallel.pieces import SharedDecoding  # noqa: E402
from opensora.opensora_models.parallel.ranks import Ranks, loopback_ranks  # noqa: E402
from opensora.opensora_models.parallel.stack import Crew, inside, shared_mmdit, shared_stdit3  # noqa: E402
from opensora.opensora_models.parallel.traffic import sent_in_call  # noqa: E402
from opensora.opensora_models.stdit3.conditions import GivenFrames  # noqa: E402
from opensora.opensora_models.stdit3.config import STDiT3Config  # noqa: E402
from opensora.opensora_models.stdit3.network import STDiT3  # noqa: E402
from opensora.opensora_models.transformer.arithmetic import ARITHMETIC, UpstreamArithmetic  # noqa: E402
from opensora.opensora_models.transformer.attention import plain_attention  # noqa: E402
from opensora.opensora_models.transformer.stack import STACK_HOOK  # noqa: E402
from opensora.opensora_models.vae.hunyuan import HunyuanConfig  # noqa: E402
from opensora.opensora_models.vae.piecewise import PiecewiseAutoencoder  # noqa: E402
from opensora.opensora_models.vae.tiled import OpenSora20, Tiling  # noqa: E402

from .vaes import tiny12, tiny13  # noqa: E402

FEW_KEYS = 32
SIZE = 3
"""Processes; cases of two ranks are for the first two of them."""

TINY: dict[str, Any] = {"depth": 2, "hidden_size": 48, "caption_channels": 32, "model_max_length": 20}
V12 = STDiT3Config(num_heads=4, **TINY)
V13 = STDiT3Config(version="1.3", num_heads=2, in_channels=16, kernel_size=(8, 8, -1), use_spatial_rope=True, **TINY)
V20 = MMDiTConfig(
    in_channels=16,
    vec_in_dim=12,
    context_in_dim=20,
    hidden_size=96,
    num_heads=6,
    depth=2,
    depth_single_blocks=2,
    axes_dim=(4, 6, 6),
)
FOUR_HEADS = replace(V20, num_heads=4, axes_dim=(8, 8, 8))
FLUX = replace(V20, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True)


@dataclass(frozen=True)
class Case:
    """One call of a network by ``ranks`` ranks; ``latents`` are frames, height and width."""

    config: STDiT3Config | MMDiTConfig
    ranks: int
    rows: int = 1
    latents: tuple[int, int, int] = (5, 6, 10)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    f"{name}, {ranks} ranks": replace(case, ranks=ranks)
    for ranks in (2, 3)
    for name, case in {
        "1.2": Case(V12, 0),
        "1.2, two rows": Case(V12, 0, rows=2),
        "1.2, three rows, frame mask": Case(V12, 0, rows=3, options={"mask": True}),
        "1.2, one row, frame mask": Case(V12, 0, options={"mask": True}),
        "1.2, fewer frames than ranks": Case(V12, 0, latents=(1, 6, 6), options={"mask": True}),
        "1.2, fewer positions than ranks": Case(V12, 0, latents=(4, 2, 2)),
        "1.2, upstream's rounding": Case(V12, 0, rows=3, options={"upstream": True}),
        "1.2, no temporal blocks": Case(replace(V12, skip_temporal=True), 0),
        "1.2, inside a cache": Case(V12, 0, options={"outer": True}),
        "1.3, whole windows": Case(V13, 0, latents=(3, 32, 48)),
        "1.3, cut windows": Case(V13, 0, rows=2, latents=(3, 22, 42)),
        "1.3, one window": Case(V13, 0, latents=(3, 8, 10)),
        "1.3, windows of two frames": Case(replace(V13, kernel_size=(4, 4, 2)), 0, latents=(5, 14, 20)),
        "1.3, given frames": Case(V13, 0, rows=3, latents=(4, 22, 42), options={"given": True}),
        "1.3, given frames, one row, frame mask": Case(V13, 0, latents=(4, 22, 42), options={"given": 1, "mask": 1}),
        "1.3, without windows": Case(replace(V13, kernel_size=None, use_spatial_rope=False), 0),
        "2.0": Case(V20, 0),
        "2.0, three rows": Case(V20, 0, rows=3),
        "2.0, less text than ranks": Case(V20, 0, options={"text": 1}),
        "2.0, fewer image tokens than ranks": Case(V20, 0, latents=(1, 2, 2)),
        "Flux, two rows": Case(FLUX, 0, rows=2),
        "2.0, inside a cache": Case(V20, 0, options={"outer": True}),
        "2.0, heads that three do not divide": Case(FOUR_HEADS, 0),
        "2.0, two rows, heads that three do not divide": Case(FOUR_HEADS, 0, rows=2),
    }.items()
}


class TokenByToken(nn.Linear):
    """A linear layer that gives a token the same numbers whichever tokens stand beside it."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        tokens = input.reshape(-1, self.in_features)
        done = [(part[:, None] * self.weight).sum(-1) for part in tokens.split(64)]
        out = torch.cat(done).view(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def query_by_query(q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
    """An attention that gives a query the same numbers whichever queries stand beside it; few keys only."""
    if k.shape[-2] > FEW_KEYS:
        return plain_attention(q, k, v, heads, **options)
    logits = (q[..., None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
    return (logits.softmax(-1)[..., None] * v[..., None, :, :]).sum(-2).transpose(1, 2).flatten(2)


class Layers:
    """What a network is made of, see :mod:`torch.nn`."""

    Linear, Conv3d, Embedding, RMSNorm = TokenByToken, nn.Conv3d, nn.Embedding, nn.RMSNorm


EXACT: dict[str, Any] = {"operations": Layers, "attention": query_by_query}


def filled(network: nn.Module) -> nn.Module:
    """With seeded weights large enough for every part to matter."""
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * spread + float("norm" in key))
    return network.eval()


def stdit3_inputs(case: Case) -> dict[str, Any]:
    """Texts of unlike lengths, times of unlike rows."""
    config, rows, generator = case.config, case.rows, torch.Generator().manual_seed(5)
    assert isinstance(config, STDiT3Config)
    frames, height, width = case.latents
    inputs: dict[str, Any] = {
        "x": torch.randn(rows, config.in_channels, *case.latents, generator=generator),
        "timestep": torch.linspace(700, 90, rows),
        "text": [torch.randn(4 + 3 * row, config.caption_channels, generator=generator) for row in range(rows)],
        "fps": 24,
        "height": 8 * height,
        "width": 8 * width,
    }
    if case.options.get("mask"):
        inputs["frame_mask"] = torch.arange(rows * frames).view(rows, frames) % 3 != 1
    if case.options.get("given"):
        latents = torch.randn(rows, config.in_channels, *case.latents, generator=generator)
        mask = torch.zeros(1, 1, frames, 1, 1)
        mask[:, :, [0, frames - 1]] = 1
        inputs["given"] = GivenFrames(latents, mask.expand(rows, 1, *case.latents), [0, frames - 1])
    return inputs


def mmdit_inputs(case: Case) -> dict[str, Any]:
    """Rows of unlike times, texts and references."""
    config, rows, generator = case.config, case.rows, torch.Generator().manual_seed(5)
    assert isinstance(config, MMDiTConfig)
    inputs: dict[str, Any] = {
        "x": torch.randn(rows, config.channels, *case.latents, generator=generator),
        "time": torch.linspace(0.9, 0.2, rows),
        "text": torch.randn(rows, case.options.get("text", 7), config.context_in_dim, generator=generator),
        "pooled": torch.randn(rows, config.vec_in_dim, generator=generator),
    }
    if config.cond_embed:
        given = torch.arange(case.latents[0]) % 2 == 0
        inputs["reference"] = reference_features(torch.randn(inputs["x"].shape, generator=generator), given)
    if config.guidance_embed:
        inputs["guidance"] = torch.linspace(4.0, 3.5, rows)
    return inputs


def prepared(case: Case, layers: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any], Any, Callable[[Crew], Any]]:
    """The network of a case, its inputs, the clip in numbers, and what makes the hook."""
    config = case.config
    frames, height, width = case.latents
    if isinstance(config, STDiT3Config):
        grid = (-(-height // 2), -(-width // 2))
        inputs = stdit3_inputs(case)
        clip = STDiT3Clip(config, frames, grid)
        return filled(STDiT3(config, **layers)), inputs, clip, lambda crew: shared_stdit3(crew, config, frames, grid)
    inputs = mmdit_inputs(case)
    text = inputs["text"].shape[1]
    image = MMDiTClip(config, frames * height * width // config.patch_size**2, text)
    return filled(MMDiT(config, **layers)), inputs, image, lambda crew: shared_mmdit(crew, config, text)


def compared(case: Case, crew: Crew, layers: Mapping[str, Any]) -> dict[str, Any]:
    """One case on one rank."""
    network, inputs, clip, make = prepared(case, layers)
    options: dict[str, Any] = {ARITHMETIC: UpstreamArithmetic()} if case.options.get("upstream") else {}
    with torch.no_grad():
        alone = network(**inputs, transformer_options=dict(options))
        before = crew.sent
        hook, seen = make(crew), []
        if case.options.get("outer"):
            hook = inside(lambda x, modulation, run: _noted(seen, run(x.clone())), hook)
        together = network(**inputs, transformer_options={**options, STACK_HOOK: hook})
    plan, rank = crew.plan, crew.everybody.rank
    assert plan is not None
    return {
        "difference": float((together - alone).abs().max()),
        "spread": float(alone.std()),
        "sent": crew.sent - before,
        "formula": sent_in_call(plan, case.rows, clip, rank, inputs["x"].element_size(), crew.everybody.size),
        "plan": [plan.rows, plan.sequence],
        "outer": len(seen),
    }


def sampled(case: Case, crew: Crew) -> dict[str, Any]:
    """Four steps with guidance in every second one: two rows, then one, so that the plan changes on the way."""
    network, inputs, _, make = prepared(case, EXACT)
    hook, plans = make(crew), []

    def run(options: dict[str, Any]) -> Tensor:
        x = inputs["x"][:1]
        for step in range(4):
            rows = 2 - step % 2
            call = {name: value[:rows] for name, value in inputs.items() if name in ("text", "pooled", "reference")}
            fixed = {name: value for name, value in inputs.items() if name not in (*call, "x", "timestep", "time")}
            level = torch.tensor([1 - step / 4])
            times = {"time": level} if "time" in inputs else {"timestep": level * 1000}
            out = network(x.expand(rows, -1, -1, -1, -1), **call, **fixed, **times, transformer_options=dict(options))
            plans.append([crew.plan.rows, crew.plan.sequence] if options and crew.plan else None)
            out = out[:, : x.shape[1]]
            x = x + (out[-1:] + 3 * (out[:1] - out[-1:])) / 4
            if options:  # rank 0 has the result, and tells the others as the order of a call does
                x = crew.everybody.exchange([x] * crew.everybody.size, [x.shape] * crew.everybody.size)[0]
        return x

    with torch.no_grad():
        alone, together = run({}), run({STACK_HOOK: hook})
    difference = float((together - alone).abs().max())
    return {"difference": difference, "spread": float(alone.std()), "plans": plans[4:]}


SAMPLED = {
    "1.2": Case(V12, 2, rows=2),
    "1.3": Case(V13, 3, rows=2, latents=(3, 22, 42)),
    "2.0": Case(V20, 2, rows=2),
}


VAES: dict[str, tuple[Callable[[], PiecewiseAutoencoder], tuple[int, ...]]] = {
    "groups of 1.2, 2 ranks": (tiny12, (1, 4, 12, 4, 5)),
    "groups of 1.3, 3 ranks, two clips": (tiny13, (2, 16, 12, 4, 5)),
    "tiles of 2.0, 3 ranks": (lambda: tiny20(), (1, 3, 7, 12, 9)),
    "one piece of 2.0, 2 ranks": (lambda: tiny20(), (1, 3, 2, 3, 4)),
}


def tiny20() -> OpenSora20:
    """Seeded, small, cut in space and time."""
    torch.manual_seed(20)
    config = HunyuanConfig(widths=(4, 6, 8, 8), layers=1, latent_channels=3, groups=2)
    return OpenSora20(config, tiling=Tiling(spatial=True, temporal=True, size=64, frames=16)).eval()


def decoded(name: str, ranks: Ranks) -> dict[str, Any]:
    """A clip decoded by all; rank 0 compares."""
    make, shape = VAES[name]
    model, latents = make(), torch.randn(shape, generator=torch.Generator().manual_seed(4))
    sharing = SharedDecoding(ranks, shape[0])
    with torch.no_grad():
        layout, compute = model.decoding(latents)
        if ranks.rank:
            sharing.help(layout, compute, layout.pieces)
            return {"sent": ranks.sent}
        together = torch.cat(list(model.decoded(latents, helped=sharing.helped)), dim=2)
        alone = model.decode(latents)
        pieces = len(layout.pieces)
    return {"equal": torch.equal(together, alone), "spread": float(alone.std()), "sent": ranks.sent, "pieces": pieces}


def _noted(seen: list[Tensor], out: Tensor) -> Tensor:
    seen.append(out)
    return out


def main(folder: str, rank: int) -> None:
    """Be one of :data:`SIZE` ranks, which meet by a file in ``folder``; writes ``rank.json`` there."""
    from torch.distributed import FileStore, PrefixStore

    store = FileStore(str(Path(folder) / "store"), SIZE)
    crews = {}

    def open_group(name: str, place: int, count: int, size: int = 0) -> Ranks:
        return loopback_ranks(PrefixStore(f"{size} {name}", store), place, count, seconds=60)

    for size in (2, 3):
        if rank >= size:
            continue

        crews[size] = Crew(open_group("all", rank, size, size), partial(open_group, size=size))
    results = {}
    for name, case in CASES.items():
        if case.ranks in crews:
            exact = compared(case, crews[case.ranks], EXACT)
            results[name] = {**exact, "rounded": compared(case, crews[case.ranks], {})["difference"]}
    for name, case in SAMPLED.items():
        if case.ranks in crews:
            results[f"sampled {name}"] = sampled(case, crews[case.ranks])
    for name in VAES:
        size = 3 if "3 ranks" in name else 2
        if rank < size:
            results[name] = decoded(name, open_group(f"decoding {name}", rank, size, size))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    if rank == 0:  # whose store the others still use
        for other in range(1, SIZE):
            store.wait([f"done {other}"])
    else:
        store.set(f"done {rank}", "")
