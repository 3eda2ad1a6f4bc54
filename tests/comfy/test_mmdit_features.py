"""Places of 2.0's network that core's features use: both kinds of blocks, attention, windows over time, previews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from support.core_nodes import call
from support.native import conditioning, empty, load, randn, relative, sample, spy

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

FRAMES = 9


@pytest.fixture(scope="module")
def model(executor: Executor, tiny_models: Path) -> Any:
    executor.validate({"1": {"class_type": "EasyCache", "inputs": {}}})  # has core's extra nodes read
    return load(tiny_models, "2.0")


def shot(model: Any, frames: int = 3, steps: int = 2, **options: Any) -> Tensor:
    texts = conditioning(6, **options), conditioning(6, seed=2, **options)
    return sample(model, empty("2.0", frames, 4, 6), *texts, steps=steps)


@pytest.mark.parametrize("kind", ["double_block", "single_block"])
def test_blocks_can_be_replaced_and_left_out(model: Any, kind: str) -> None:
    seen: list[tuple[str, int, int]] = []

    def same(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        options = args["transformer_options"]
        seen.append((options["block_type"], options["block_index"], options["total_blocks"]))
        return extra["original_block"](args)

    plain, watched, shorter = shot(model), model.clone(), model.clone()
    watched.set_model_patch_replace(same, "dit", kind, 1)
    shorter.set_model_patch_replace(lambda args, extra: args, "dit", kind, 1)
    assert torch.equal(shot(watched), plain)
    assert seen == [(kind.removesuffix("_block"), 1, 2)] * 2
    assert relative(shot(shorter), plain) > 1e-3


def test_cores_node_leaves_out_single_blocks(model: Any) -> None:
    skip = {"double_layers": "", "single_layers": "1", "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    none, some = (call("SkipLayerGuidanceDiT", model=model, scale=scale, **skip)[0] for scale in (0.0, 1.0))
    assert torch.equal(shot(none), shot(model))
    assert relative(shot(some), shot(model)) > 1e-3


def test_every_attention_can_be_overridden(model: Any) -> None:
    counted = []

    def override(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        counted.append(kwargs["transformer_options"]["block_index"])
        return attention(*args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(shot(watched), shot(model))
    assert counted == [0, 1, 0, 1] * 2


def test_what_attention_gives_can_be_patched_in_every_block(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Core's normalized attention guidance works there; it must know where the picture begins, in both block kinds."""
    seen = []

    def patch(out: Tensor, options: dict[str, Any]) -> Tensor:
        seen.append((options["block_type"], options["block_index"], options["img_slice"], out.shape[1]))
        return out

    watched = model.clone()
    watched.set_model_patch(patch, "attn1_output_patch")
    assert torch.equal(shot(watched), shot(model))
    slices = [6, 6 + 3 * 2 * 3]
    assert seen == [(kind, i, slices, slices[1]) for kind in ("double", "single") for i in (0, 1)] * 2
    guided = call("NAGuidance", model=model)[0]
    assert relative(shot(guided), shot(model)) > 1e-3
    assert "without effect" not in caplog.text


def windows(model: Any, length: int, overlap: int) -> Any:
    return call(
        "ContextWindowsManual", model=model, context_length=length, context_overlap=overlap,
        context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
        freenoise=False, cond_retain_index_list="", split_conds_to_windows=False,
    )[0]  # fmt: skip


def test_context_windows_cut_latents_and_references(model: Any) -> None:
    """A window over everything is the plain run; smaller ones see their own frames of the reference."""
    given = {"opensora_given_latent": randn(1, 16, FRAMES, 4, 6, seed=8), "opensora_given_frames": [0, FRAMES - 1]}
    plain = shot(model, FRAMES, **given)
    assert torch.equal(shot(windows(model, FRAMES, 1), FRAMES, **given), plain)
    with spy() as calls:
        done = shot(windows(model, 5, 1), FRAMES, **given)
    assert done.isfinite().all() and relative(done, plain) > 1e-3
    assert {each["x"].shape[2] for each in calls} <= {5, 6}, "core makes the last window a little longer"
    masks = {tuple(row[0, :, 0, 0].tolist()) for each in calls for row in each["reference"]}
    assert {(mask[0], *mask[-1:]) for mask in masks} == {(1, 0), (0, 1)} and all(sum(mask) == 1 for mask in masks)


@pytest.mark.parametrize("release", ["2.0", "2.0 high compression"])
def test_previews_show_frames_side_by_side(model: Any, release: str) -> None:
    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS

    form = LATENT_FORMATS[release]()
    assert len(form.latent_rgb_factors) == form.latent_channels and len(form.latent_rgb_factors[0]) == 3
    latent = randn(1, form.latent_channels, 9, 4, 6)
    assert form.latent_rgb_factors_reshape(latent).shape == (1, form.latent_channels, 12, 18)
    torch.testing.assert_close(form.process_out(form.process_in(latent)), latent)


@pytest.mark.parametrize("kind", ["double_block", "single_block"])
def test_an_interrupt_ends_the_step(model: Any, kind: str) -> None:
    import comfy.model_management as management

    ran = []

    def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        ran.append(kind)
        management.interrupt_current_processing(True)
        return extra["original_block"](args)

    stopped = model.clone()
    for number in range(2):
        stopped.set_model_patch_replace(block, "dit", kind, number)
    with pytest.raises(management.InterruptProcessingException):
        shot(stopped)
    assert ran == [kind], "the block that ran was the last"
    assert shot(model, steps=1).isfinite().all()


def test_upstream_rounding_computes_in_bf16(tiny_models: Path, model: Any) -> None:
    upstream = load(tiny_models, "2.0", as_upstream=True)
    with spy() as calls:
        done = shot(upstream, steps=1)
    assert calls[0]["x"].dtype == torch.bfloat16
    assert 0 < relative(done, shot(model, steps=1)) < 0.05


def test_large_rows_go_one_by_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opensora.opensora_models.native.model import mmdit_model

    with spy() as together:
        want = shot(model)
    assert [len(each["x"]) for each in together] == [2, 2]
    monkeypatch.setattr(mmdit_model, "MOST_TOKENS_TOGETHER", 6 + 3 * 2 * 3 - 1)
    with spy() as alone:
        got = shot(model)
    assert [len(each["x"]) for each in alone] == [1] * 4
    assert relative(got, want) < 1e-4


def test_large_rows_that_a_patch_compares_go_together(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Core's normalized attention guidance would do nothing on rows alone, which is told where memory wants them so."""
    from opensora.opensora_models.native.model import mmdit_model

    guided = call("NAGuidance", model=model)[0]
    want = shot(guided)
    monkeypatch.setattr(mmdit_model, "MOST_TOKENS_TOGETHER", 0)
    assert torch.equal(shot(guided), want)
    assert "compares the rows" not in caplog.text
    monkeypatch.setattr(type(guided), "get_free_memory", lambda *_: 1.0)
    assert relative(shot(guided), shot(model)) < 1e-4
    assert caplog.text.count("Normalized Attention Guidance compares the rows") >= 1


def test_a_queue_that_looks_ahead_is_told_every_block(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from opensora.opensora_models.native.model import prefetch

    told: list[Any] = []
    core = SimpleNamespace(
        make_prefetch_queue=lambda blocks, device, options: list(blocks),
        prefetch_queue_pop=lambda queue, device, block: told.append((len(queue), block)),
    )
    plain, network = shot(model, steps=1), model.model.diffusion_model
    monkeypatch.setattr(prefetch, "core", core)
    assert torch.equal(shot(model, steps=1), plain)
    assert told == [(4, block) for block in (*network.double_blocks, *network.single_blocks, None)]
