"""The native MODEL: its sign, its conditioning, its masks; the traps of the integration one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import CHANNELS, conditioning, empty, load, model_file, randn, relative, sample, spy

pytestmark = pytest.mark.comfy

VERSIONS = ("1.2", "1.3")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(comfy: Path, tiny_models: Path, version: str) -> Any:
    return load(tiny_models, version)


def plain_network(tiny_models: Path, version: str) -> Any:
    """The same weights in PyTorch's own layers, without ComfyUI."""
    from opensora.opensora_models.checkpoint.opening import open_checkpoint
    from opensora.opensora_models.stdit3.config import config_from_shapes
    from opensora.opensora_models.stdit3.keys import from_checkpoint_key
    from opensora.opensora_models.stdit3.network import STDiT3

    file = open_checkpoint(model_file(tiny_models, version))
    network = STDiT3(config_from_shapes(file.shapes))
    network.load_state_dict({from_checkpoint_key(name): value for name, value in file.load().items()})
    return network.eval()


def upstream_loop(network: Any, z: Tensor, sigmas: Tensor, texts: list[Tensor], scale: float, fps: float) -> Tensor:
    """Open-Sora's own sampling: ``z += v dt`` with guidance on the velocity."""
    size = {"height": z.shape[-2] * 8, "width": z.shape[-1] * 8, "fps": fps}
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        with torch.no_grad():
            v = network(torch.cat([z, z]), now.repeat(2) * 1000, texts, **size)[:, : z.shape[1]]
        cond, null = v.chunk(2)
        z = z + (null + scale * (cond - null)) * (now - then)
    return z


SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize(("frames", "fps"), [(5, 24.0), (5, 23.976), (1, 120.0)])
def test_euler_equals_the_original_loop(model: Any, tiny_models: Path, version: str, frames: int, fps: float) -> None:
    latent = empty(version, frames, height=7, width=9)
    z = randn(*latent.shape, seed=3)
    positive, negative = conditioning(7, frame_rate=fps), conditioning(5, seed=2, frame_rate=fps)
    texts = [positive[0][0][0], negative[0][0][0]]
    want = upstream_loop(plain_network(tiny_models, version), z, SIGMAS, texts, 4.0, fps)
    result = sample(model, latent, positive, negative, noise=z, sigmas=SIGMAS)
    assert relative(model.model.process_latent_in(result), want) < 2e-5


def test_the_network_gets_exact_numbers_in_bf16(model: Any, version: str) -> None:
    model.set_model_compute_dtype(torch.bfloat16)
    mask = torch.tensor([0.0, 0.6, 0.3, 1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    conds = conditioning(7, frame_rate=23.976), conditioning(5, seed=2, frame_rate=23.976)
    sigmas = torch.tensor([1.0, 0.601, 0.6, 0.3005, 0.3, 0.0])
    with spy() as calls:
        sample(model, empty(version), *conds, mask=mask, sigmas=sigmas)
    assert [float(call["timestep"][0]) for call in calls] == pytest.approx([1000, 601, 600, 300.5, 300])
    assert all(call["x"].dtype == torch.bfloat16 and call["text"][0].dtype == torch.bfloat16 for call in calls)
    assert all(call["fps"].tolist() == pytest.approx([23.976] * 2, rel=1e-6) for call in calls)
    assert all((call["height"], call["width"]) == (64, 80) for call in calls)
    active = [call["frame_mask"][0].tolist() for call in calls]
    assert active == [
        [False, False, False, True, True],
        [False, False, False, True, True],
        [False, True, False, True, True],
        [False, True, False, True, True],
        [False, True, True, True, True],
    ]


def test_the_first_step_is_active_although_its_time_exceeds_1000(model: Any, version: str) -> None:
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    with spy() as calls:
        sample(model, empty(version), mask=mask, sigmas=torch.tensor([1.0000001, 0.5, 0.0]))
    assert calls[0]["frame_mask"][0].tolist() == [False, True, True, True, True]


def test_an_image_is_announced_with_120_frames_per_second(model: Any, version: str) -> None:
    with spy() as calls:
        sample(model, empty(version, frames=1), conditioning(frame_rate=24.0), steps=1)
    assert calls[0]["fps"].tolist() == [120.0, 120.0]


def test_texts_of_any_length_share_a_forward_and_change_nothing(model: Any, version: str) -> None:
    latent = empty(version)
    with spy() as together:
        both = sample(model, latent, conditioning(11), conditioning(3, seed=2), cfg=5.0)
    assert {tuple(row.shape[0] for row in call["text"]) for call in together} == {(3, 11)}
    apart = _separate_branches(model, latent, conditioning(11), conditioning(3, seed=2), 5.0)
    assert relative(both, apart) < 1e-5


def _separate_branches(model: Any, latent: Tensor, positive: list, negative: list, scale: float) -> Tensor:
    """The same sampling with one forward per branch."""
    import comfy.samplers

    class Apart(comfy.samplers.CFGGuider):
        """Asks for the branches one after the other."""

        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None = None) -> Tensor:
            answers = [
                comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep, model_options)[0]
                for name in ("positive", "negative")
            ]
            return answers[1] + scale * (answers[0] - answers[1])

    guider = Apart(model)
    guider.set_conds(positive, negative)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    with torch.inference_mode(), spy() as calls:
        noise = randn(*latent.shape, seed=5)
        euler = comfy.samplers.sampler_object("euler")
        result = guider.sample(noise, latent, euler, sigmas, disable_pbar=True, seed=5)
    assert len(calls) == 6
    return result


def test_padding_of_a_padded_text_is_dropped(model: Any, version: str) -> None:
    short = conditioning(6)
    padded = torch.cat([short[0][0], randn(1, 4, 64, seed=9)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 4])
    want = sample(model, empty(version), short)
    assert torch.equal(sample(model, empty(version), [[padded, {"attention_mask": mask}]]), want)


def test_a_batch_equals_its_members(model: Any, version: str) -> None:
    noise = randn(3, CHANNELS[version], 5, 8, 10, seed=8)
    mask = torch.tensor([0.0, 0.6, 1.0, 1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    latent = randn(*noise.shape, seed=9)
    together = sample(model, latent, noise=noise, mask=mask)
    for row in range(3):
        alone = sample(model, latent[row : row + 1], noise=noise[row : row + 1], mask=mask)
        assert relative(together[row : row + 1], alone) < 2e-5


def test_rows_of_one_conditioning_belong_to_rows_of_the_batch(model: Any, version: str) -> None:
    noise = randn(2, CHANNELS[version], 2, 8, 10, seed=8)
    positive = conditioning(6, rows=2)
    together = sample(model, torch.zeros_like(noise), positive, noise=noise)
    for row in range(2):
        own = [[positive[0][0][row : row + 1], {}]]
        alone = sample(model, torch.zeros_like(noise[:1]), own, noise=noise[row : row + 1])
        assert relative(together[row : row + 1], alone) < 2e-5


def test_kept_frames_come_back_as_they_were(model: Any, version: str) -> None:
    latent = randn(*empty(version).shape, seed=4)
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 5, 1, 1)
    result = sample(model, latent, mask=mask)
    assert relative(result[:, :, [0, 4]], latent[:, :, [0, 4]]) < 1e-5
    assert relative(result[:, :, 1:4], latent[:, :, 1:4]) > 0.1


def test_kept_frames_are_shown_clean_and_free_ones_noisy(model: Any, version: str) -> None:
    latent = randn(*empty(version).shape, seed=4)
    mask = torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    noise = randn(*latent.shape, seed=6)
    with spy() as calls:
        sample(model, latent, noise=noise, mask=mask, sigmas=torch.tensor([1.0, 0.5, 0.0]))
    clean = model.model.process_latent_in(latent)
    first, second = calls[0]["x"][:1], calls[1]["x"][:1]
    assert torch.allclose(first[:, :, :2], clean[:, :, :2])
    assert torch.allclose(first[:, :, 2:], noise[:, :, 2:])
    assert torch.allclose(second[:, :, 0], clean[:, :, 0])
    # The frame that joins at 0.5 is half way between its noise and itself, as the original makes it.
    assert torch.allclose(second[:, :, 1], 0.5 * (clean + noise)[:, :, 1], atol=1e-5)


def test_a_mask_inside_a_frame_keeps_its_pixels_and_noises_them_like_the_rest(model: Any, version: str) -> None:
    latent = randn(*empty(version).shape, seed=4)
    mask = torch.ones(1, 1, 5, 8, 10)
    mask[..., :5] = 0.0
    mask[:, :, 0] = 0.0
    noise = randn(*latent.shape, seed=6)
    with spy() as calls:
        result = sample(model, latent, noise=noise, mask=mask, sigmas=torch.tensor([0.75, 0.25, 0.0]))
    clean = model.model.process_latent_in(latent)
    seen = calls[0]["x"][:1]
    assert calls[0]["frame_mask"][0].tolist() == [False, True, True, True, True]
    assert torch.allclose(seen[:, :, 0], clean[:, :, 0])
    assert torch.allclose(seen[:, :, 1:], (0.25 * clean + 0.75 * noise)[:, :, 1:], atol=1e-5)
    assert relative(result[..., :5], latent[..., :5]) < 1e-5
    assert relative(result[:, :, 1:, :, 5:], latent[:, :, 1:, :, 5:]) > 0.1


def test_a_mask_of_ones_costs_nothing(model: Any, version: str) -> None:
    with spy() as calls:
        sample(model, empty(version), mask=torch.ones(1, 1, 5, 8, 10), steps=1)
    assert calls[0]["frame_mask"] is None


def given(version: str, frames: list[int], **extra: Any) -> dict[str, Any]:
    latent = randn(1, CHANNELS[version], 5, 8, 10, seed=21)
    return {"opensora_given_latent": latent, "opensora_given_frames": frames, **extra}


def test_given_frames_reach_the_network_normalised_and_cut(comfy: Path, tiny_models: Path) -> None:
    model = load(tiny_models, "1.3")
    entry = given("1.3", [0, 4])
    with spy() as calls:
        sample(model, empty("1.3"), conditioning(**entry), conditioning(5, **entry, opensora_given_drop=True), steps=1)
    told = calls[0]["given"]
    normal = model.model.process_latent_in(entry["opensora_given_latent"])
    assert told.indices == [0, 4]
    assert told.mask.expand(2, 1, 5, 1, 1)[:, 0, :, 0, 0].tolist() == [[1, 0, 0, 0, 1]] * 2
    negative, positive = told.latents  # ComfyUI puts the positive branch last
    assert torch.equal(positive[:, [0, 4]], normal[0, :, [0, 4]])
    assert positive[:, 1:4].abs().max() == 0 and negative.abs().max() == 0


def test_no_given_frames_is_not_the_same_as_an_empty_list(comfy: Path, tiny_models: Path) -> None:
    model = load(tiny_models, "1.3")
    with spy() as calls:
        sample(model, empty("1.3"), conditioning(opensora_given_frames=[]), cfg=1.0, steps=1)
        sample(model, empty("1.3"), conditioning(), cfg=1.0, steps=1)
    assert calls[0]["given"].indices == [] and calls[1]["given"] is None


def test_branches_with_other_given_frames_run_apart(comfy: Path, tiny_models: Path) -> None:
    model = load(tiny_models, "1.3")
    with spy() as calls:
        sample(model, empty("1.3"), conditioning(**given("1.3", [0])), conditioning(**given("1.3", [4])), steps=1)
    assert sorted(call["given"].indices for call in calls) == [[0], [4]]


def test_context_windows_cut_masks_and_given_frames(comfy: Path, tiny_models: Path) -> None:
    import comfy.context_windows as windows

    model = load(tiny_models, "1.3")
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=5,
        context_overlap=0,
        dim=2,
    )
    frames = 10
    entry = {"opensora_given_latent": randn(1, 16, frames, 8, 10), "opensora_given_frames": [6]}
    mask = torch.ones(1, 1, frames, 1, 1)
    mask[:, :, 7] = 0
    with spy() as calls:
        result = sample(
            model, empty("1.3", frames), conditioning(**entry), conditioning(5, **entry), mask=mask, steps=1
        )
    assert result.shape[2] == frames and result.isfinite().all()
    first, second = calls
    anchor = second["x"].shape[2] - 5  # newer versions show every window one frame of the start
    assert first["x"].shape[2] == 5 and anchor in (0, 1)
    assert first["given"].indices == [] and second["given"].indices == [1 + anchor]
    assert first["frame_mask"][0].tolist() == [True] * 5
    assert second["frame_mask"][0].tolist()[anchor:] == [True, True, False, True, True]


def test_areas_cut_frame_masks_too(model: Any, version: str) -> None:
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    left = conditioning(area=(8, 5, 0, 0), strength=1.0)
    right = conditioning(9, seed=3, area=(8, 5, 0, 5), strength=1.0)
    with spy() as calls:
        result = sample(model, empty(version), [*left, *right], cfg=1.0, mask=mask, steps=1)
    assert result.isfinite().all()
    assert all(call["x"].shape[-2:] == (8, 5) and call["frame_mask"].shape[1] == 5 for call in calls)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"opensora_given_frames": [9]}, r"\[9\] are not all among latent frames 0 to 4"),
        (
            {"opensora_given_frames": [0], "opensora_given_latent": torch.zeros(1, 16, 2, 8, 10)},
            "encode the references",
        ),
    ],
)
def test_impossible_given_frames_are_refused(comfy: Path, tiny_models: Path, extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(load(tiny_models, "1.3"), empty("1.3"), conditioning(**extra))


def test_version_1_2_refuses_given_frames(comfy: Path, tiny_models: Path) -> None:
    with pytest.raises(ValueError, match="no input for given frames"):
        sample(load(tiny_models, "1.2"), empty("1.2"), conditioning(opensora_given_frames=[0]))


def test_text_of_another_encoder_is_refused(model: Any, version: str) -> None:
    with pytest.raises(ValueError, match=r"text of shape \[1, 7, 32\].*reads text \[batch, tokens, 64\]"):
        sample(model, empty(version), [[randn(1, 7, 32), {}]])


def test_latents_of_another_model_are_refused(model: Any, version: str) -> None:
    wrong = randn(1, 8, 5, 8, 10)
    with pytest.raises(ValueError, match="make it with Empty Open-Sora Latent"):
        sample(model, wrong)


def test_shift_nodes_keep_the_time_scale(model: Any, version: str, comfy: Path) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (shifted,) = ModelSamplingSD3().patch(model, shift=3.0)
    with spy() as calls:
        sample(shifted, empty(version), steps=4)
    assert [float(call["timestep"][0]) for call in calls] == pytest.approx([1000, 900, 750, 500], rel=1e-4)


def test_hooks_of_core_are_honoured(model: Any, version: str) -> None:
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy.patcher_extension import WrappersMP

    seen: dict[str, int] = {"wrapper": 0, "attention": 0, "block": 0}

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen["wrapper"] += 1
        assert args[0].ndim == 5
        assert isinstance(kwargs["transformer_options"], dict)
        return executor(*args, **kwargs)

    def attention(original: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen["attention"] += 1
        return attention_pytorch(*args, **kwargs)

    def block(args: dict, extra: dict) -> dict:
        seen["block"] += 1
        return extra["original_block"](args)

    plain = sample(model, empty(version), steps=1)
    hooked = model.clone()
    hooked.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    hooked.model_options["transformer_options"]["optimized_attention_override"] = attention
    hooked.set_model_patch_replace(block, "dit", "double_block", 3)
    assert relative(sample(hooked, empty(version), steps=1), plain) < 1e-5
    assert seen["wrapper"] == 1 and seen["block"] == 1 and seen["attention"] >= 8


def test_helpers_for_other_parts(model: Any, version: str, tiny_models: Path) -> None:
    from opensora.opensora_models.checkpoint.opening import open_checkpoint
    from opensora.opensora_models.native.model.base_model import opensora_config
    from opensora.opensora_models.native.model.stdit3_model import null_text

    config = opensora_config(model)
    assert config is not None and config.version == version
    assert opensora_config(object()) is None
    stored = open_checkpoint(model_file(tiny_models, version)).load()["y_embedder.y_embedding"]
    assert torch.equal(null_text(model), stored)
    with pytest.raises(ValueError, match="not an Open-Sora"):
        null_text(object())


def test_normalisation_is_undone_and_previews_are_pictures(model: Any, version: str) -> None:
    latents = randn(1, CHANNELS[version], 15, 6, 8)
    form = model.model.latent_format
    assert torch.allclose(form.process_out(form.process_in(latents)), latents, atol=1e-5)
    from latent_preview import Latent2RGBPreviewer

    previewer = Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
    )
    assert previewer.decode_latent_to_preview(latents).size == (24, 18)
    assert previewer.decode_latent_to_preview(latents[:, :, :1]).size == (8, 6)


def test_a_contact_sheet_shows_frames_in_reading_order(comfy: Path) -> None:
    from opensora.opensora_models.native.model.latent_formats import contact_sheet

    clip = torch.arange(17.0).reshape(1, 1, 17, 1, 1)
    assert contact_sheet(clip)[0, 0].tolist() == [[0, 2, 4], [6, 8, 10], [12, 14, 16]]
    assert contact_sheet(clip[:, :, :3])[0, 0].tolist() == [[0, 1], [2, 0]]
