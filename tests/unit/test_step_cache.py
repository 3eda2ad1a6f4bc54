"""The cache of a run in plain torch: which rows are computed, which numbers stand in, and what is kept meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.caching.guidance_rows import GuidanceCache, GuidanceReuse
from opensora.opensora_models.caching.stack import StackCache
from opensora.opensora_models.caching.tables import StepTable
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.network import STDiT3

LEVELS = (1.0, 0.8, 0.6, 0.4, 0.2)


class Stack:
    """Stands for the blocks: every call adds another number, and writes into what it is handed."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return x.add_(float(len(self.calls)))


def asked(
    cache: StackCache, stack: Stack, rows: Sequence[Hashable], level: float, x: Tensor, mask: Tensor | None = None
) -> Tensor:
    """One call of a network whose blocks are ``stack``."""
    hook = cache.around(rows, level, mask)
    return stack(x.clone()) if hook is None else hook(x, x.new_zeros(len(x), 1, 6, 1), stack)


def tokens(rows: int = 1, fill: float = 0.0, count: int = 3) -> Tensor:
    return torch.full((rows, count, 2), fill)


def test_computed_steps_are_exact_and_reused_ones_add_what_was_kept() -> None:
    cache, stack = StackCache(StepTable("10010", LEVELS)), Stack()
    added = []
    for step, level in enumerate(LEVELS):
        x = tokens(fill=10.0 * step)
        out = asked(cache, stack, ["a"], level, x)
        assert torch.equal(x, tokens(fill=10.0 * step)), "what the network holds stays as it is"
        added.append(float((out - x)[0, 0, 0]))
    assert added == [1, 1, 1, 2, 2] and len(stack.calls) == 2
    assert (cache.computed_rows, cache.reused_rows) == (2, 3)


def test_rows_are_kept_apart_and_come_in_any_order_and_company() -> None:
    cache, stack = StackCache(StepTable("10000", LEVELS)), Stack()
    asked(cache, stack, ["a"], 1.0, tokens())
    asked(cache, stack, ["b"], 1.0, tokens())
    assert asked(cache, stack, ["b", "a"], 0.8, tokens(2))[:, 0, 0].tolist() == [2, 1]
    assert asked(cache, stack, ["a"], 0.6, tokens())[0, 0, 0] == 1
    out = asked(cache, stack, ["a", "c"], 0.4, tokens(2))
    assert out[:, 0, 0].tolist() == [3, 3], "a row that is not known is computed, and its neighbours with it"
    assert asked(cache, stack, ["c", "b"], 0.2, tokens(2))[:, 0, 0].tolist() == [3, 2]


def test_clips_of_a_batch_belong_to_their_row() -> None:
    cache = StackCache(StepTable("10000", LEVELS))
    x = torch.arange(4.0).reshape(4, 1, 1)
    hook = cache.around(["a", "b"], 1.0)
    assert hook is not None
    hook(x, x, lambda given: given * torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1))
    again = cache.around(["b", "a"], 0.8)
    assert again is not None
    out = again(torch.zeros(4, 1, 1), x, lambda given: pytest.fail("nothing is computed"))
    assert out.flatten().tolist() == [2 * 2.0, 3 * 3.0, 0.0, 1.0]


def test_a_row_that_missed_its_computed_step_is_computed_when_it_is_next_asked_for() -> None:
    """Oscillating guidance leaves rows out for some steps."""
    cache, stack = StackCache(StepTable("10100", LEVELS)), Stack()
    for rows, level in ((["a", "b"], 1.0), (["a", "b"], 0.8), (["a"], 0.6), (["a", "b"], 0.4), (["a", "b"], 0.2)):
        asked(cache, stack, rows, level, tokens(len(rows)))
    assert stack.calls == [2, 1, 2]


def test_two_calls_of_one_step_are_one_step() -> None:
    """Samplers of second order look twice."""
    cache, stack = StackCache(StepTable("10110", LEVELS)), Stack()
    for level in (1.0, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2):
        asked(cache, stack, ["a"], level, tokens())
    assert len(stack.calls) == 1 + 2 + 1, "0.6 is a step of its own and always computed"


def test_nothing_is_reused_where_everything_is_computed() -> None:
    cache = StackCache(StepTable("11111", LEVELS))
    assert [cache.around(["a"], level) for level in (*LEVELS, 0.5, 0.8)] == [None] * 7
    assert cache.most_bytes == 0 and "nothing was reused" in cache.summary()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.cat([x, x]),
        lambda x: x.to(torch.bfloat16),
    ],
)
def test_another_shape_or_dtype_is_computed(change: Callable[[Tensor], Tensor]) -> None:
    cache, stack = StackCache(StepTable("10000", LEVELS)), Stack()
    asked(cache, stack, ["a"], 1.0, tokens())
    asked(cache, stack, ["a"], 0.8, change(tokens()))
    assert len(stack.calls) == 2


def test_frames_that_become_noisy_are_computed() -> None:
    cache, stack = StackCache(StepTable("10000", LEVELS)), Stack()
    early, late = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    for mask in (early, early, late, late, None):
        asked(cache, stack, ["a"], LEVELS[len(stack.calls)], tokens(), mask)
    assert len(stack.calls) == 3


def test_kept_are_the_rows_of_one_span_and_no_more() -> None:
    cache, stack = StackCache(StepTable("10101", LEVELS)), Stack()
    for step, level in enumerate(LEVELS):
        asked(cache, stack, [f"window {step // 2}", "b"], level, tokens(2))  # as looping context windows name them
        assert len(cache._rows) <= 2
    assert cache.most_rows == 2 and cache.most_bytes == 2 * 3 * 2 * 4
    assert not cache._rows, "the last step is computed alone and keeps nothing"
    assert "4 of 10 rows" not in cache.summary() and "6 of 10 rows" in cache.summary()


def test_a_kept_row_holds_no_other_rows_memory() -> None:
    cache = StackCache(StepTable("10000", LEVELS))
    asked(cache, Stack(), ["a", "b"], 1.0, tokens(2))
    kept = [row.residual for row in cache._rows.values()]
    assert all(each.untyped_storage().nbytes() == each.numel() * each.element_size() for each in kept)


def small(**changes: Any) -> STDiT3:
    """A seeded network of 1.2's kind."""
    torch.manual_seed(0)
    config = STDiT3Config(
        version="1.2", hidden_size=48, depth=2, num_heads=2, caption_channels=16, in_channels=4, **changes
    )
    network = STDiT3(config).eval().requires_grad_(False)
    for key, value in network.state_dict().items():
        if key != "rope.freqs":
            value.normal_(0, 0.1 if value.ndim < 2 else value[0].numel() ** -0.5)
    return network


@torch.no_grad()
def test_in_a_network_the_first_call_is_exact_and_the_next_one_is_near() -> None:
    network, cache = small(), StackCache(StepTable("10000", LEVELS))
    inputs = {"text": torch.randn(1, 5, 16), "fps": 24.0, "height": 64, "width": 64}

    def call(x: Tensor, level: float, hooked: bool) -> Tensor:
        hook = cache.around(["a"], level) if hooked else None
        options = {} if hook is None else {"opensora_stack_hook": hook}
        return network(x, torch.tensor([1000 * level]), **inputs, transformer_options=options)

    x = torch.randn(1, 4, 3, 8, 8)
    nearby = x + 0.01 * torch.randn_like(x)
    assert torch.equal(call(x, 1.0, True), call(x, 1.0, False))
    reused, computed = call(nearby, 0.99, True), call(nearby, 0.99, False)
    assert not torch.equal(reused, computed)
    assert float((reused - computed).norm() / computed.norm()) < 0.2


@torch.no_grad()
def test_a_compiled_network_computes_and_reuses_the_same() -> None:
    network, outs = small(), []
    inputs = {"text": torch.randn(1, 5, 16), "fps": 24.0, "height": 64, "width": 64}
    x, compiled = torch.randn(1, 4, 3, 8, 8), torch.compile(network, backend="eager")
    for run in (network, compiled):
        cache = StackCache(StepTable("10000", LEVELS))
        for level in (1.0, 0.9):
            options = {"opensora_stack_hook": cache.around(["a"], level)}
            outs.append(run(x, torch.tensor([1000 * level]), **inputs, transformer_options=options))
        assert (cache.computed_rows, cache.reused_rows) == (1, 1)
    torch.testing.assert_close(outs[2], outs[0])
    torch.testing.assert_close(outs[3], outs[1])


def test_guidance_rows_are_reused_after_their_share_of_the_run() -> None:
    schedule = [*(1 - step / 10 for step in range(10)), 0.0]
    assert GuidanceReuse(3, 0.4).table(schedule).flags == "1111" + "100100"
    assert GuidanceReuse(5, 0.0).table(schedule).flags == "1100001000"
    assert not GuidanceReuse(1, 0.0).table(schedule).reuses and not GuidanceReuse(4, 1.0).table(schedule).reuses


@pytest.mark.parametrize(("every", "after"), [(0, 0.5), (2, -0.1), (2, 1.5), (2, float("nan"))])
def test_what_guidance_reuse_cannot_mean_is_refused(every: int, after: float) -> None:
    with pytest.raises(ValueError, match="nearest good value"):
        GuidanceReuse(every, after)


def test_an_unguided_row_stands_as_far_from_the_prompt_as_it_last_did() -> None:
    cache, seen = GuidanceCache(StepTable("10010", LEVELS)), []
    x = torch.zeros(1, 2)

    def compute(level: float) -> Callable[[Sequence[int]], list[Tensor]]:
        def rows(numbers: Sequence[int]) -> list[Tensor]:
            seen.append(list(numbers))
            # velocities 5 and, later in the run, 5 + number: predictions are latents less level times velocity
            return [x + 100 * level - level * (5.0 + number) for number in numbers]

        return rows

    for level in LEVELS:
        exact = compute(level)([0, 1, 2])
        seen.pop()
        for got, want in zip(cache.predict(["p", "n", "o"], level, compute(level), x), exact, strict=True):
            torch.testing.assert_close(got, want)
    assert seen == [[0, 1, 2], [0], [0], [0, 1, 2], [0]]
    assert (cache.computed_rows, cache.reused_rows) == (9, 6)


def test_guidance_rows_that_are_new_or_alone_are_computed() -> None:
    cache, seen, x = GuidanceCache(StepTable("10000", LEVELS)), [], torch.zeros(1, 2)

    def compute(numbers: Sequence[int]) -> list[Tensor]:
        seen.append(list(numbers))
        return [x + number for number in numbers]

    for rows in (["p"], ["p", "n"], ["p", "n"], ["p", "o"], ["q", "n"], ["n"]):
        assert len(cache.predict(rows, 0.8, compute, x)) == len(rows)
    assert seen == [[0], [0, 1], [0], [0, 1], [0, 1], [0]]
