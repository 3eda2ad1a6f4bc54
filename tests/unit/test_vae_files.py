"""VAE files in every published layout, latents and videos on disk, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opensora.opensora_models.checkpoint.opening import open_checkpoint
from opensora.opensora_models.vae.guards import check_latents, check_num_frames, check_pixels
from opensora.opensora_models.vae.keys import PIPELINE_PREFIX
from opensora.opensora_models.vae.latent_file import load_latent, save_latent
from opensora.opensora_models.vae.quality import compared, psnr, same_shape, ssim
from opensora.opensora_models.vae.recognition import plain_network, recognise
from opensora.opensora_models.vae.statistics import V12_STATISTICS, exchange_with
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, VideoJob, exact_rate, unfinished_videos
from support import random_weights
from support.patience import until
from support.vaes import decode_into

MP4 = FORMATS["mp4 (h264)"]

LDM_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tiny VAE files."""
    folder = tmp_path_factory.mktemp("tiny")
    random_weights.main(folder)
    return folder / "vae"


@pytest.fixture(scope="module")
def weights(tiny: Path) -> dict[str, Tensor]:
    return open_checkpoint(tiny / "random-vae-v1.2.safetensors").load()


def as_old_diffusers(name: str) -> str:
    """The name before diffusers 0.17."""
    for new, old in OLD_ATTENTION.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def as_latent_diffusion(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The name in the original Stable Diffusion layout; projections are 1×1 convolutions there."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    for block in range(4):
        name = name.replace(f"down_blocks.{block}.", f"down.{block}.").replace(
            f"up_blocks.{block}.", f"up.{3 - block}."
        )
    for number in range(2):
        name = name.replace(f"mid_block.resnets.{number}.", f"mid.block_{number + 1}.")
    name = name.replace(".resnets.", ".block.").replace("downsamplers.0.", "downsample.")
    name = name.replace("upsamplers.0.", "upsample.")
    for new, old in LDM_ATTENTION.items():
        if f"mid_block.attentions.0.{new}." in name:
            name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    return name, tensor.contiguous()


def spatial_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(PIPELINE_PREFIX): v for k, v in weights.items() if k.startswith(PIPELINE_PREFIX)}


def temporal_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("temporal_vae."): v for k, v in weights.items() if k.startswith("temporal_vae.")}


@pytest.mark.parametrize("layout", ["old diffusers", "split", "split latent-diffusion", "split prefixed", "pickle"])
@torch.inference_mode()
def test_every_layout_is_the_same_network(layout: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    main, spatial = tmp_path / "main.safetensors", None
    if layout == "old diffusers":
        save_file({as_old_diffusers(name): value for name, value in weights.items()}, main)
        assert any(".proj_attn." in name for name in open_checkpoint(main).shapes)
    elif layout == "pickle":
        main = tmp_path / "main.pt"
        torch.save(weights, main)
    else:
        spatial = tmp_path / "image.safetensors"
        images = spatial_part(weights)
        if "latent-diffusion" in layout:
            images = dict(as_latent_diffusion(name, value) for name, value in images.items())
            assert "decoder.mid.attn_1.q.weight" in images and "decoder.up.3.upsample.conv.weight" in images
        save_file(images, spatial)
        prefix = "temporal_vae." if "prefixed" in layout else ""
        save_file({prefix + name: value for name, value in temporal_part(weights).items()}, main)
    recipe = recognise(open_checkpoint(main), open_checkpoint(spatial) if spatial else None)
    assert recipe.check() == []
    loaded = recipe.load()
    expected = {name: value for name, value in weights.items() if spatial is None or name not in ("shift", "scale")}
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@torch.inference_mode()
def test_tiny_files_run(tiny: Path) -> None:
    for version, channels in (("1.2", 4), ("1.3", 16)):
        recipe = recognise(open_checkpoint(tiny / f"random-vae-v{version}.safetensors"))
        assert recipe.version == version and recipe.check() == []
        latents = plain_network(recipe).float().encode(torch.zeros(1, 3, 1, 16, 16))
        assert latents.shape == (1, channels, 1, 2, 2)


def test_wrong_files_get_one_sentence(tiny: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    image, temporal, half, foreign = (tmp_path / f"{n}.safetensors" for n in ("image", "temporal", "half", "foreign"))
    save_file(spatial_part(weights), image)
    save_file(temporal_part(weights), temporal)
    save_file({k: v for k, v in weights.items() if "decoder.conv_out" not in k}, half)
    save_file({"spatial_blocks.0.attn.qkv.weight": torch.zeros(2, 2), "temporal_blocks.0.x": torch.zeros(1)}, foreign)
    whole = open_checkpoint(tiny / "random-vae-v1.2.safetensors")
    for call, words in (
        (lambda: recognise(open_checkpoint(image)), "spatial_vae"),
        (lambda: recognise(open_checkpoint(temporal)), "only the temporal half"),
        (lambda: recognise(open_checkpoint(temporal), whole), "expected a Stable Diffusion or SDXL"),
        (lambda: recognise(whole, open_checkpoint(image)), "leave spatial_vae on none"),
        (lambda: recognise(open_checkpoint(half)).check(), "lacks"),
        (lambda: recognise(open_checkpoint(foreign)), "expected a video VAE of Open-Sora 1.2, 1.3 or 2.0"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert str(error.value).count("\n") == 0


def test_statistics_of_a_file_keep_latents_exchangeable() -> None:
    shift, scale = V12_STATISTICS.tensors(1)
    assert exchange_with(shift.bfloat16(), scale.bfloat16()) is None
    assert exchange_with(None, None) is None
    own = exchange_with(shift + 1, scale * 2)
    latents = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    # What the diffusion model sees must be the file's own normalisation.
    torch.testing.assert_close(V12_STATISTICS.normalise(own.from_file(latents)), (latents - shift - 1) / (2 * scale))
    torch.testing.assert_close(own.to_file(own.from_file(latents)), latents)


def test_foreign_latents_are_refused() -> None:
    good = torch.zeros(1, 4, 5, 2, 2)
    check_latents(good, "1.2", 4)
    for latents, words in (
        (torch.zeros(1, 16, 5, 2, 2), "as Open-Sora 1.3 has them|Open-Sora 1.3"),
        (torch.zeros(1, 4, 8, 8), "are \\[batch, 4"),
        (torch.zeros(1, 4, 0, 2, 2), "empty"),
        (torch.full((1, 4, 5, 2, 2), float("nan")), "not numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            check_latents(latents, "1.2", 4)
    with pytest.raises(ValueError, match="NaN"):
        check_pixels(torch.tensor([float("inf")]))


def test_lengths_that_do_not_fit_name_the_nearest() -> None:
    for frames in (18, 19, 20, 21):
        check_num_frames("1.2", 6, frames)
    with pytest.raises(ValueError, match="18 to 21 frames, 34 was asked for; the nearest good value is 21"):
        check_num_frames("1.2", 6, 34)
    check_num_frames("1.3", 10, 33)
    with pytest.raises(ValueError, match="nearest good value is 33"):
        check_num_frames("1.3", 10, 34)


def test_latents_come_back_from_disk(tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 5, 2, 3)
    path = tmp_path / "sub" / "a_00001_.latent"
    save_latent(path, latents, {"num_frames": 17}, {"prompt": {"1": {}}})
    again, notes = load_latent(path)
    assert torch.equal(again, latents) and notes == {"num_frames": 17}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    (tmp_path / "bad.latent").write_bytes(b"no")
    save_file({"other": latents}, tmp_path / "other.latent")
    for name in ("bad.latent", "other.latent", "missing.latent"):
        with pytest.raises(ValueError, match=f"'{name}'"):
            load_latent(tmp_path / name)


def frames_of(path: Path) -> Tensor:
    with av.open(str(path)) as file:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)])


@pytest.mark.parametrize("form", FORMATS)
def test_joined_groups_make_one_exact_video(form: str, tmp_path: Path) -> None:
    kind, rate = FORMATS[form], exact_rate(23.976)
    colors = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.6, 0.1], [0.5, 0.5, 0.5], [0.1, 0.1, 0.7], [1, 1, 1], [0, 0, 0]])
    clip = colors[:, None, None].expand(6, 32, 48, 3)
    video = GroupedVideo(tmp_path / "parts", kind, rate, 10)
    for number, part in enumerate(clip.split(2)):
        video.write(number, part)
    target = tmp_path / f"out{kind.ending}"
    assert video.join(3, target, {"workflow": {"nodes": []}, "prompt": {"a": 1}}) == 6
    with av.open(str(target)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.color_range == 1 and stream.codec_context.colorspace == 1
        metadata = {key.lower(): value for key, value in file.metadata.items()}
        assert json.loads(metadata["prompt"]) == {"a": 1} and json.loads(metadata["workflow"]) == {"nodes": []}
        times = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    assert times == pytest.approx([number / 23.976 for number in range(6)], abs=2e-3)
    assert (frames_of(target).float() / 255 - clip).abs().mean(dim=(1, 2)).max() < 0.02


def test_another_job_has_another_folder(tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 5, 2, 2)
    first, same, faster, other = (
        VideoJob.of(tmp_path, values, rate, "a")
        for values, rate in ((latents, 24), (latents.clone(), 24), (latents, 25), (latents + 1, 24))
    )
    assert first == same
    assert len({first.parts, faster.parts, other.parts}) == 3
    with pytest.raises(ValueError, match="frames per second"):
        exact_rate(0)


def test_a_finished_video_replaces_what_is_left_of_its_latents_alone(tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 5, 2, 2)
    jobs = [VideoJob.of(tmp_path, values, rate) for values, rate in ((latents, 24), (latents, 25), (latents + 1, 24))]
    for job in jobs:
        GroupedVideo(job.parts, MP4, exact_rate(24), 18).part(0).write_bytes(b"12345")
    assert unfinished_videos(tmp_path) == (3, 15)
    jobs[0].finish()
    assert unfinished_videos(tmp_path) == (1, 5)
    assert jobs[2].parts.is_dir()
    assert unfinished_videos(tmp_path / "missing") == (0, 0)


WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from support.pack import load_pack
load_pack()
import torch
from pathlib import Path
from support.vaes import decode_into
decode_into(Path(sys.argv[2]), pause=0.3)
"""


def test_a_killed_run_continues_at_the_first_missing_group(tmp_path: Path) -> None:
    assert decode_into(tmp_path / "whole") == [0, 1, 2, 3, 4, 5]
    broken = tmp_path / "broken"
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(Path(__file__).parents[1]), str(broken)])
    until(lambda: (broken / "00001.mp4").is_file() or worker.poll() is not None)
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    kept = GroupedVideo(broken, MP4, exact_rate(24), 18).done()
    assert 2 <= kept < 6
    assert decode_into(broken) == list(range(kept, 6))
    whole, continued = frames_of(tmp_path / "whole.mp4"), frames_of(tmp_path / "broken.mp4")
    assert whole.shape[0] == 6 * 17
    assert torch.equal(whole, continued)


def test_quality_measures() -> None:
    clip = torch.rand(3, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    assert psnr(clip, clip) == [100.0] * 3
    assert ssim(clip, clip) == pytest.approx([1.0] * 3)
    assert psnr(clip * 0, clip * 0 + 0.1) == pytest.approx([20.0] * 3)
    noisy = (clip + 0.1 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert all(0.3 < value < 0.99 for value in ssim(clip, noisy))
    a, b = same_shape(clip, clip[:2, 1:-1, 2:-2])
    assert "the first 2 and the middle" in compared(clip, clip[:2, 1:-1, 2:-2]) and compared(clip, clip) == ""
    wide = torch.zeros(1, 63, 95, 3)  # the high-compression VAE's cells have 32 pixels
    assert same_shape(wide, wide[:, :32, :64])[0].shape == (1, 32, 64, 3)
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="pixels"):
        same_shape(clip, clip[:, :8])
