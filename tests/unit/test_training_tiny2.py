"""Training of the tiny Open-Sora 2.0: its autoencoder's start, what its network is told, resuming, exported files."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from opensora.opensora_models.mmdit.config import MMDiTConfig, config_from_shapes, default_axes
from opensora.opensora_models.mmdit.keys import from_checkpoint_key
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.settings import complete
from opensora.opensora_models.text.clip_config import clip_config, encoder_shapes
from opensora.opensora_models.vae.tiled import OpenSora20
from opensora.opensora_models.vae.tiled_files import hunyuan_config, is_hunyuan, tiling_of
from opensora.training import autoencoder, calibration, export, flow, flow_batches, kept, rendering, scenes
from opensora.training.clip_bank import ClipBank
from opensora.training.clip_l import tokenizer_of
from opensora.training.exported import CLIP_FILE, NETWORK_FILE, TEXT_FILE, exported_text_encoder
from opensora.training.flow_losses import losses_of
from opensora.training.flow_recipes import RECIPES, FlowConfig, Phase
from opensora.training.flow_sampling import SamplingConfig
from opensora.training.latents import LatentCode
from opensora.training.mmdit_pair import MMDiTPair
from opensora.training.mmdit_sampling import sample_mmdit
from opensora.training.progress import LOG_NAME
from opensora.training.reading import Reading
from opensora.training.text_encoder import TextEncoderConfig
from support.shipped import DEMO

RECIPE = autoencoder.RECIPES["2.0"]
BUCKETS = (
    flow_batches.Bucket(17, 32, 32, batch=4, share=1.0, banked=True),
    flow_batches.Bucket(1, 32, 32, batch=4, share=0.2, banked=True),
)


class Words:
    """Stands for both tokenizers, which come with ComfyUI: one number per word."""

    def ids(self, text: str) -> list[int]:
        return [*(2 + sum(map(ord, word)) % 90 for word in text.split()), 1]

    def padded(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[*self.ids(text)[:-1][: length - 1], 1] for text in texts]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return ids, torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]

    def clip_ids(self, text: str) -> list[int]:
        return [49406, *self.ids(text)[:-1], 49407]


@pytest.fixture(scope="module")
def model() -> OpenSora20:
    made = autoencoder.new_autoencoder(RECIPE)
    assert isinstance(made, OpenSora20)
    return made


@pytest.fixture(scope="module")
def bank(model: OpenSora20) -> ClipBank:
    return ClipBank(LatentCode(model), flow_batches.FROM_MIDDLE, size=4)


def small_flow() -> FlowConfig:
    network = MMDiTConfig(
        in_channels=64, vec_in_dim=8, context_in_dim=8, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1,
        axes_dim=default_axes(16), text_tokens=24,
    )  # fmt: skip
    text = TextEncoderConfig(vocabulary=100, width=8, inner=8, heads=2, head_width=4, layers=1)
    words = flow_batches.BatchConfig(
        buckets=BUCKETS, given_share=0.0, frame_mask_share=0.0, backgrounds=("black",), rivals=True
    )
    told = flow_batches.BatchConfig(buckets=BUCKETS, given_share=0.6, frame_mask_share=0.0, given_rivals=True)
    phases = (Phase(4, words, trains_text=False), Phase(4, told, trains_text=False))
    return replace(RECIPES["2.0"], network=network, text=text, phases=phases, warm_up=1, bank=4)


def test_the_encoder_starts_as_a_code_of_every_fourth_frame(model: OpenSora20) -> None:
    rng = np.random.default_rng(8)
    rows = [scenes.draw_scene(rng, 17, 1.0, scenes.SceneConfig()) for _ in range(4)]
    clips = rendering.render(rows, 17, 64, 64)
    code = LatentCode(model)
    code.check(model, clips)
    with torch.no_grad():
        unit = model.normalise(model.encode(clips))
    assert unit.shape == (4, 16, 5, 8, 8) and 0.5 < float(unit.square().mean()) < 2.0
    error = float((code.pictures(unit) - clips[:, :, ::4]).square().mean())
    assert 10 * np.log10(4 / error) > 28.0


@pytest.mark.parametrize("frames", [1, 17, 33, 49])
def test_latents_show_the_frames_they_are_said_to(model: OpenSora20, frames: int) -> None:
    rows = [scenes.draw_scene(np.random.default_rng(9), frames, 1.0, scenes.SceneConfig(0.0, 0.0))]
    with torch.no_grad():
        wanted = model.normalise(model.encode(rendering.render(rows, frames, 32, 32)))
    torch.testing.assert_close(LatentCode(model).clips(rows, frames, 32, 32), wanted, rtol=0, atol=0.01)


def test_the_autoencoder_learns_resumes_and_is_read_back(tmp_path: Path) -> None:
    stages = tuple(replace(stage, steps=3, batch=1, size=16, frames=5) for stage in RECIPE.stages)
    config = replace(RECIPE, stages=stages, analysed_clips=16, warm_up=1)
    whole, steps = autoencoder.train(config, tmp_path / "whole")
    autoencoder.train(config, tmp_path / "parts", last_step=4)
    parts, _ = autoencoder.train(config, tmp_path / "parts")
    assert steps == 6
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    export.write_autoencoder(tmp_path, whole, config, steps)
    path = tmp_path / "vae/opensora-tiny-vae-v2.0.safetensors"
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert json.loads(about["opensora.training"]) == json.loads(json.dumps({"steps": steps, **asdict(config)}))
    settings = json.loads(about["opensora.config"])
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert is_hunyuan(shapes) and settings["version"] == about["opensora.version"] == "2.0"
    read = OpenSora20(hunyuan_config(shapes, settings), tiling=tiling_of(settings, whole.tiling))
    assert read.config == config.networks[0] and read.tiling == whole.tiling
    read.load_state_dict({name: value.float() for name, value in weights.items()})


def test_the_decoder_learns(tmp_path: Path) -> None:
    stage = replace(RECIPE.stages[0], steps=40, batch=4, size=16, frames=5)
    config = replace(RECIPE, stages=(stage,), analysed_clips=16)
    autoencoder.train(config, tmp_path)
    losses = [json.loads(line)["l1"] for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10]), losses


def test_ends_are_given_and_clips_that_people_go_on_from() -> None:
    rng = np.random.default_rng(0)
    drawn = {flow_batches.draw_ends(rng, 13) for _ in range(400)}
    assert {(0,), (12,), (0, 12), tuple(range(9)), tuple(range(4, 13)), tuple(range(5))} <= drawn
    # 2.0 is never told frames between the ends, nor everything.
    assert all(len(given) < 13 and (0 in given or 12 in given) for given in drawn)
    assert all(given == (0, 12) or len(given) == given[-1] - given[0] + 1 for given in drawn)


def test_captions_end_as_prompts_of_20_do(bank: ClipBank) -> None:
    config = RECIPES["2.0"].phases[2].batches
    captions = [text for step in range(6) for text in flow_batches.batch_of(config, bank, 3, step).captions]
    assert all(". 24 FPS. " in text and text.endswith(" motion score.") for text in captions)
    assert {text.split()[-3] for text in captions} >= {"1", "4", "7"}
    assert not any("aesthetic" in text or "strength" in text for text in captions)
    assert {bucket.frames for bucket in config.buckets} == {1, 17, 33, 49}


def test_a_row_without_reference_or_text_sees_nothing_of_it() -> None:
    torch.manual_seed(0)
    pair = MMDiTPair(small_flow()).eval()
    latents = torch.randn(2, 16, 5, 4, 4)
    batch = flow_batches.Batch(
        bucket=BUCKETS[0], latents=latents, noise=latents, captions=["a red circle", "a blue square"],
        has_text=torch.tensor([True, False]), times=torch.tensor([900.0, 300.0]), given=(0, 4),
        given_kept=torch.tensor([True, False]), frame_mask=None,
    )  # fmt: skip
    told = pair.conditions(Words(), batch)
    reference = told["reference"]
    assert reference.shape == (2, 17, 5, 4, 4) and not reference[1].any()
    assert reference[0, 0, :, 0, 0].tolist() == [1, 0, 0, 0, 1]
    assert torch.equal(reference[0, 1:, 4], latents[0, :, 4]) and not reference[0, 1:, 2].any()
    states, pooled = pair.read(Words(), ["", "a blue square"])
    assert told["states"].shape == (2, 24, 8) and torch.equal(told["states"][1], states[0])
    torch.testing.assert_close(told["pooled"][1], pooled[0])
    assert (pooled[0] - pooled[1]).abs().max() > 0.05, "every prompt has a state of its own"


@pytest.mark.usefixtures("one_thread")
def test_the_flow_runs_resumes_and_is_read_back(tmp_path: Path) -> None:
    config = small_flow()
    run = flow.Run(config, tmp_path / "parts", Words())
    for _ in range(6):
        run.update()
    run.save()
    pairs = [flow.train(config, tmp_path / name, Words()) for name in ("whole", "parts")]
    for one, two in zip(*(pair.parameters() for pair in pairs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    pair, fresh = pairs[0], MMDiTPair(config)
    assert isinstance(pair, MMDiTPair)
    changed = {
        name.split(".")[0] for name, value in pair.named_parameters()
        if not torch.equal(value, fresh.get_parameter(name))
    }  # fmt: skip
    assert changed == {"network", "clock"}, "both text encoders stay as they are"
    export.write_pair(tmp_path, pair, config, config.steps)
    path = tmp_path / NETWORK_FILE.format("2.0")
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert json.loads(about["opensora.training"]) == json.loads(json.dumps({"steps": 8, **asdict(config)}))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert complete(config_from_shapes(shapes), json.loads(about["opensora.config"])) == config.network
    network = MMDiT(config.network)
    network.load_state_dict({from_checkpoint_key(name): value.float() for name, value in weights.items()})
    x, time = torch.randn(1, 16, 5, 4, 4), torch.tensor([700.0])
    states, pooled = pair.read(Words(), ["a red circle"])
    with torch.no_grad():
        # In training the velocity is clean minus noise, in 2.0 noise minus clean.
        wanted = -pair.velocity_and_tokens(x, time, states, pooled, BUCKETS[0])[0]
        torch.testing.assert_close(network(x, time / 1000, states, pooled), wanted, rtol=0.02, atol=0.02)
    clip = load_file(tmp_path / CLIP_FILE)
    found = {name: tuple(value.shape) for name, value in clip.items()}
    assert found == encoder_shapes(clip_config(found, "clip")), "what the loader asks for, and nothing else"
    assert not (tmp_path / "text_encoders/opensora-tiny-t5.safetensors").exists(), "the shipped T5 serves"


def test_samples_keep_given_pictures_and_not_given_clips() -> None:
    torch.manual_seed(0)
    pair = MMDiTPair(small_flow()).eval()
    for layer in (pair.network.cond_in, pair.network.final_layer.linear):
        torch.nn.init.normal_(layer.weight, std=0.1)
    given, settings = torch.ones(2, 16, 5, 4, 4), SamplingConfig(steps=2)
    captions = ["a red circle", "a blue square"]
    free, pictures, clip = (
        sample_mmdit(pair, Words(), captions, BUCKETS[0], settings, given=frames, indices=indices)
        for frames, indices in ((None, ()), (given, (0, 4)), (given, (0, 1, 2)))
    )
    assert free.shape == (2, 16, 5, 4, 4) and bool(torch.isfinite(free).all())
    assert torch.equal(pictures[:, :, [0, 4]], given[:, :, [0, 4]])
    assert not torch.equal(clip[:, :, 0], given[:, :, 0]) and not torch.allclose(clip, free)
    assert not torch.allclose(pictures[:, :, 1:4], free[:, :, 1:4]), "what is given reaches the other frames"


def test_words_that_contradict_given_frames_are_trained_where_those_are_told(bank: ClipBank) -> None:
    config = replace(small_flow().phases[1].batches, given_share=1.0, given_dropout=0.5)
    misnaming = replace(config, misnamed_share=1.0)
    kinds = set()
    for step in range(30):
        named, other = (flow_batches.batch_of(each, bank, 1, step) for each in (config, misnaming))
        assert torch.equal(named.latents, other.latents) and named.given == other.given, "only words change"
        for right, said, told in zip(named.captions, other.captions, named.given_kept.tolist(), strict=True):
            words = [{word for word in text.split() if word in known} for text in (right, said)
                     for known in (scenes.COLOURS, scenes.SHAPES)]  # fmt: skip
            assert (right != said) == (told and bool(named.given))
            if right != said:
                assert words[0].isdisjoint(words[2]) and words[1].isdisjoint(words[3]), (right, said)
            kinds.add(right != said)
    assert kinds == {True, False}


@pytest.mark.parametrize(("given_share", "misnamed_share"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_rows_are_asked_for_the_shape_that_frames_tell_or_else_words(
    bank: ClipBank, given_share: float, misnamed_share: float
) -> None:
    config = replace(
        small_flow().phases[1].batches, buckets=BUCKETS[:1], given_share=given_share, given_dropout=0.5,
        text_dropout=0.5, misnamed_share=misnamed_share, recognised=True,
    )  # fmt: skip
    pair, told = MMDiTPair(small_flow()), set()
    for step in range(12):
        batch = flow_batches.batch_of(config, bank, 1, step)
        right = flow_batches.batch_of(replace(config, misnamed_share=0.0), bank, 1, step)
        assert batch.shapes is not None
        kept = batch.given_kept if batch.given else torch.zeros(4, dtype=torch.bool)
        for shape, words, by_frames, by_words in zip(batch.shapes, right.captions, kept, batch.has_text, strict=True):
            drawn = scenes.SHAPES.index(next(shape for shape in scenes.SHAPES if shape in words.split()))
            assert int(shape) == (drawn if by_frames or by_words else flow_batches.UNTOLD)
            told.add((bool(by_frames), bool(by_words)))
        wrong = losses_of(pair, Words(), batch).unrecognised
        assert wrong is not None and (wrong > 0) == bool((batch.shapes >= 0).any())
    assert told == set(itertools.product((False, True) if given_share else (False,), (False, True)))


def test_what_is_asked_for_a_shape_counts_untold_frames_alone() -> None:
    torch.manual_seed(0)
    pair = MMDiTPair(small_flow())
    width = pair.network.config.hidden_size
    tokens = torch.randn(3, 4, 2, width, requires_grad=True)
    untold = torch.tensor([[False, True, True, True]]).expand(3, -1)
    wrong = pair.shape_losses(tokens, torch.tensor([2, 2, flow_batches.UNTOLD]), untold)
    assert wrong[0] > 0 and wrong[1] > 0 and wrong[2] == 0
    wrong.sum().backward()
    reached = tokens.grad.abs().sum((2, 3)) > 0
    assert torch.equal(reached, untold & torch.tensor([[True], [True], [False]]))
    with torch.no_grad():
        pair.shape_reader.weight.zero_()
        pair.shape_reader.bias.copy_(torch.tensor([0.0, 0.0, 30.0, 0.0]))
    assert pair.shape_losses(tokens, torch.tensor([2, 1, 2]), untold).tolist() == pytest.approx([0, 30, 0], abs=1e-4)


def test_clips_that_keep_a_first_frame_are_read(
    any_tokenizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = kept.cases(16)
    assert {(case.scene.shape, case.scene.motion) for case in rows} == set(itertools.product(scenes.SHAPES, kept.WAYS))
    for case in rows:
        assert case.colour != case.scene.colour and case.shape != case.scene.shape
        assert case.prompt("none") == "" and case.colour in case.prompt("other") and case.shape in case.prompt("other")
        assert case.scene.colour in case.prompt("right") and case.scene.motion in case.prompt("right")
    read = [Reading(case.scene.colour, case.scene.shape, case.scene.motion) for case in rows]
    assert kept.said(rows, read).endswith("lost: none")
    read[0] = replace(read[0], shape=rows[0].shape)
    assert kept.said(rows, read).endswith(
        f"lost: 1 {rows[0].scene.shape} to {rows[0].shape}, which the other words name"
    )

    pair, code = MMDiTPair(replace(RECIPES["2.0"], phases=())).eval(), LatentCode(autoencoder.new_autoencoder(RECIPE))
    made = {"exported_pair": pair, "exported_autoencoder": None, "LatentCode": code, "tokenizer_of": Words()}
    for name, part in made.items():
        monkeypatch.setattr(kept, name, lambda *_, part=part: part)
    monkeypatch.setattr(
        kept, "sample_mmdit", lambda *told, **given: sample_mmdit(*told[:4], replace(told[4], steps=2), **given)
    )
    with caplog.at_level(logging.INFO):
        kept.main(["--models", str(DEMO), "--tokenizer", any_tokenizer, "--count", "2", "--words", "other", "none"])
    assert [line.split(":")[0] for line in caplog.messages] == ["other words, 2 clips", "none words, 2 clips"]


def test_what_wrong_words_name_is_a_rival_that_agrees_where_frames_are_told(bank: ClipBank) -> None:
    config = replace(small_flow().phases[1].batches, given_share=1.0, given_dropout=0.5, misnamed_share=0.5)
    kinds = set()
    for step in range(30):
        plain, named = (
            flow_batches.batch_of(each, bank, 1, step) for each in (config, replace(config, named_rivals=True))
        )
        if not named.given:
            continue
        assert plain.captions == named.captions and plain.rivals is not None and named.rivals is not None
        assert torch.equal(named.rivals[:, :1], plain.rivals)
        assert named.rivals.shape == (len(named.latents), 2, 1, *named.latents.shape[1:])
        told = list(named.given)
        right = flow_batches.batch_of(replace(config, misnamed_share=0.0), bank, 1, step).captions
        for row, (rival, own) in enumerate(zip(named.rivals[:, 1, 0], named.latents, strict=True)):
            assert torch.equal(rival[:, told], own[:, told])
            wrong = named.captions[row] != right[row]
            free = [frame for frame in range(own.shape[1]) if frame not in told]
            assert torch.equal(rival, own) or (wrong and not torch.allclose(rival[:, free], own[:, free]))
            kinds.add((wrong, torch.equal(rival, own)))
    assert {(True, False), (False, True)} <= kinds


def test_any_other_shape_is_a_rival_of_what_is_told_unless_it_is_held_out(
    bank: ClipBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(small_flow().phases[1].batches, given_share=1.0, misnamed_share=0.5, named_rivals=True)
    seen: list[scenes.Scene] = []
    clips = LatentCode.clips

    def watched(self: LatentCode, drawn: list[scenes.Scene], *size: int) -> torch.Tensor:
        seen[:] = drawn
        return clips(self, drawn, *size)

    monkeypatch.setattr(LatentCode, "clips", watched)
    counts = {"other": 0, "own": 0}
    for step in range(30):
        named, other = (
            flow_batches.batch_of(each, bank, 1, step) for each in (plain, replace(plain, other_rivals=True))
        )
        assert named.captions == other.captions and torch.equal(named.latents, other.latents)
        if not other.given:
            continue
        assert all(scenes.is_trained(scene.colour, scene.shape, scene.motion) for scene in seen)
        assert other.rivals is not None
        for rival, own in zip(other.rivals[:, -1, 0], other.latents, strict=True):
            counts["own" if torch.equal(rival, own) else "other"] += 1
    kept_out = sum(not scenes.is_trained(*row) for row in scenes.combinations()) / len(scenes.combinations())
    assert counts["own"] / sum(counts.values()) == pytest.approx(kept_out, abs=0.1), counts


def test_long_clips_are_told_a_clip_as_often_as_asked() -> None:
    for share in (0.3, 0.65, 1.0):
        rng = np.random.default_rng(0)
        drawn = [flow_batches.draw_ends(rng, 9, share) for _ in range(2000)]
        clips = sum(len(given) > 1 and given != (0, 8) for given in drawn) / len(drawn)
        assert abs(clips - share) < 0.04, (share, clips)
        assert all(given[0] == 0 or given[-1] == 8 for given in drawn)


def test_the_network_learns(tmp_path: Path) -> None:
    config = small_flow()
    phase = replace(config.phases[0], steps=60, batches=replace(config.phases[0].batches, buckets=BUCKETS[:1]))
    flow.train(replace(config, phases=(phase,)), tmp_path, Words())
    lines = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    for name, share in (("loss", 0.9), ("clock", 0.95)):
        losses = [line[name] for line in lines]
        assert np.mean(losses[-8:]) < share * np.mean(losses[:5]), (name, losses)


def test_a_calibration_takes_its_steps_apart_and_counts_all(tmp_path: Path) -> None:
    config = small_flow()
    taken = []

    def taking(steps: list[int], folder: Path):
        taken.append(steps)
        yield from flow.calibration_run(config, Words(), None, None, steps, folder)

    calibration_steps, calibration.CALIBRATION = calibration.CALIBRATION, 4
    try:
        seconds = calibration.calibrate(taking, [1000, 3000])
    finally:
        calibration.CALIBRATION = calibration_steps
    assert taken == [[4, 4]] and seconds > 1.0 and not list(tmp_path.iterdir())


@pytest.mark.comfy
def test_comfyui_reads_the_words_and_the_network_as_training_did(comfy: Path, tmp_path: Path) -> None:
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.text.clip import load_text_encoder
    from opensora.opensora_models.native.text.encoding import encode_both

    config, models = RECIPES["2.0"], DEMO
    pair = MMDiTPair(config).eval()
    flow.take_over(pair, exported_text_encoder(models))
    export.write_pair(tmp_path, pair, config, 0)
    model = load_model(tmp_path / NETWORK_FILE.format("2.0"))
    clip = load_text_encoder(models / TEXT_FILE, clip_l=tmp_path / CLIP_FILE)
    tokenizer = tokenizer_of(config, comfy / "comfy" / "text_encoders" / "t5_tokenizer")
    text = "a red circle moving left on a black background. 24 FPS. 4 motion score."
    encoded = encode_both(clip, text, "", model)
    for ((found, extra),), words in ((encoded.positive, text), (encoded.negative, "")):
        states, pooled = pair.read(tokenizer, [words])
        torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(extra["pooled_output"], pooled, rtol=1e-4, atol=1e-4)
    assert not encoded.warnings
