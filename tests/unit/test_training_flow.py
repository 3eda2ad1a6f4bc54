"""Training of the diffusion model: batches and losses, phases, resuming, and short runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.training import autoencoder, evaluate, export, flow, flow_batches, joins, scenes
from opensora.training.clip_bank import ClipBank, expected
from opensora.training.exported import NETWORK_FILE, exported_network, exported_text_encoder
from opensora.training.flow_losses import losses_of, mistaken, worded
from opensora.training.flow_recipes import RECIPES, TEXT_ENCODER, FlowConfig, Phase
from opensora.training.flow_sampling import SamplingConfig, sample
from opensora.training.latents import LatentCode
from opensora.training.pair import Pair, padded
from opensora.training.probe import learned_shares
from opensora.training.progress import LOG_NAME
from opensora.training.text_encoder import TextEncoderConfig
from support.shipped import DEMO

SMALL_CLIPS = (
    flow_batches.Bucket(17, 32, 32, batch=3, share=1.0, banked=True),
    flow_batches.Bucket(1, 32, 32, batch=3, share=0.2, banked=True),
)


class Words:
    """Stands for the tokenizer, which comes with ComfyUI: one number per word."""

    def ids(self, text: str) -> list[int]:
        return [*(2 + sum(map(ord, word)) % 90 for word in text.split()), 1]

    def padded(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[*self.ids(text)[:-1][: length - 1], 1] for text in texts]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return ids, torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]


@pytest.fixture(scope="module")
def code() -> LatentCode:
    return LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.3"]))


@pytest.fixture(scope="module")
def bank(code: LatentCode) -> ClipBank:
    return ClipBank(code, flow_batches.FROM_MIDDLE, size=4)


def small_flow() -> FlowConfig:
    network = STDiT3Config(
        version="1.3", depth=1, hidden_size=24, num_heads=2, in_channels=16, caption_channels=8,
        kernel_size=(8, 8, -1), use_spatial_rope=True,
    )  # fmt: skip
    text = TextEncoderConfig(vocabulary=100, width=8, inner=8, heads=2, head_width=4, layers=1)
    words = flow_batches.BatchConfig(
        buckets=SMALL_CLIPS, given_share=0.0, frame_mask_share=0.0, backgrounds=("black",), rivals=True
    )
    told = flow_batches.BatchConfig(buckets=SMALL_CLIPS, given_share=0.5, frame_mask_share=0.7)
    phases = (Phase(4, words), Phase(4, told, trains_text=False))
    return replace(FlowConfig(), network=network, text=text, phases=phases, warm_up=1, bank=4)


def test_a_short_flow_run_learns_and_samples(tmp_path: Path) -> None:
    config = small_flow()
    pair = flow.train(config, tmp_path, Words())
    before = Pair(config)
    assert any(not torch.equal(old, new) for old, new in zip(before.parameters(), pair.parameters(), strict=True))
    assert torch.equal(before.network.y_embedder.y_embedding, pair.network.y_embedder.y_embedding), "never trained"
    bucket, settings = SMALL_CLIPS[0], SamplingConfig(steps=2)
    given = torch.ones(2, 16, 5, 4, 4)
    told = sample(pair, Words(), ["a", "b c"], bucket, settings, given=given, indices=(0,))
    free = sample(pair, Words(), ["a", "b c"], bucket, settings)
    assert told.shape == free.shape == (2, 16, 5, 4, 4)
    assert bool(torch.isfinite(told).all()) and not torch.equal(told, free)


@pytest.mark.parametrize(
    ("asked", "given", "recipe"),
    [
        (["--release", "1.2"], True, RECIPES["1.2"]),
        ([], True, RECIPES["1.3"]),
        (["--text-encoder"], False, TEXT_ENCODER),
    ],
)
def test_a_command_line_says_what_is_trained_and_with_which_text_encoder(
    asked: list[str],
    given: bool,
    recipe: FlowConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    any_tokenizer: str,
) -> None:
    monkeypatch.setattr(flow, "tokenizer_of", lambda *_: Words())
    monkeypatch.setattr(flow, "code_in", lambda models, release: release)
    trained: list[tuple[object, ...]] = []
    monkeypatch.setattr(flow, "train", lambda *what: trained.append(what))
    before = ["--before", str(DEMO)]
    flow.main([str(tmp_path), "--tokenizer", any_tokenizer, *asked, *(before if given else [])])
    ((config, _, _, weights, release),) = trained
    assert config is recipe and release == recipe.version
    assert bool(weights) == given and any(phase.trains_text for phase in recipe.phases) != given
    with pytest.raises(SystemExit):
        flow.main([str(tmp_path), "--tokenizer", any_tokenizer, *asked, *([] if given else before)])
    assert len(trained) == 1


def test_the_clock_is_learned_beside_the_flow(tmp_path: Path) -> None:
    config = small_flow()
    phase = Phase(60, replace(config.phases[0].batches, buckets=SMALL_CLIPS[:1]))
    run = flow.Run(replace(config, phases=(phase,)), tmp_path, Words())
    for _ in range(phase.steps):
        run.update()
    losses = [json.loads(line)["clock"] for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, losses


@pytest.mark.parametrize("version", ["1.3", "1.2"])
def test_rows_of_a_batch_give_its_gradients_in_any_number_of_parts(version: str, tmp_path: Path) -> None:
    config = small_flow()
    told = replace(config.phases[1].batches, given_rivals=True, masked_rivals=True, text_dropout=0.5)
    if version == "1.2":
        network = STDiT3Config(version="1.2", depth=1, hidden_size=24, num_heads=2, in_channels=4, caption_channels=8)
        config = replace(config, network=network)
    config = replace(config, phases=(config.phases[0], Phase(9, told)))
    run = flow.Run(config, tmp_path, Words())
    run.pair.eval()  # training computes in bfloat16, whose rounding depends on the number of rows
    torch.nn.init.normal_(run.pair.network.final_layer.linear.weight)
    kinds = set()
    for step in (0, 1, 4, 5, 6, 7, 8, 9):
        batch = run._draw(step)
        kinds.add((batch.bucket.frames, bool(batch.given), batch.frame_mask is not None, batch.rivals is not None))
        found = []
        for threads in (1, 2, 7):
            run.threads = threads
            assert len(batch.parts(threads)) == min(threads, 3)
            numbers = run._gradients(batch)
            found.append((numbers, [None if weight.grad is None else weight.grad.clone() for weight in run.trained]))
        for numbers, gradients in found[1:]:
            assert numbers == pytest.approx(found[0][0], rel=1e-4, abs=1e-7)
            for mine, whole in zip(gradients, found[0][1], strict=True):
                assert (mine is None) == (whole is None)
                if mine is not None and whole is not None:
                    torch.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-5)
    assert len(kinds) >= 3, kinds


def test_captions_are_padded_no_more_than_needed() -> None:
    for count, length in ((2, 17), (17, 19), (20, 21), (50, 33)):
        ids, kept = padded(Words(), ["word " * count, "a b"])
        assert ids.shape == kept.shape == (2, length)
        assert kept.sum(1).tolist() == [min(count + 1, 33), 3]


def test_phases_follow_one_another_and_each_is_kept(tmp_path: Path) -> None:
    config = small_flow()
    assert [config.phase_at(step) for step in (0, 3, 4, 7)] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    with pytest.raises(ValueError, match="ends after 8 steps"):
        config.phase_at(8)
    flow.train(config, tmp_path, Words())
    words, told = (flow.averaged(config, tmp_path, phase) for phase in (1, 2))
    for part, changes in (("text_encoder", False), ("network", True)):
        one, two = (list(getattr(pair, part).parameters()) for pair in (words, told))
        assert any(not torch.equal(a, b) for a, b in zip(one, two, strict=True)) == changes, part
    with pytest.raises(ValueError, match="no phase-3"):
        flow.averaged(config, tmp_path, 3)
    assert [export.steps_done(tmp_path, phase) for phase in (1, 2, None)] == [4, 8, 8]
    mixed = flow.averaged(replace(config, phases=(config.phases[0], replace(config.phases[1], stays=0.25))), tmp_path)
    for name, value in mixed.state_dict().items():
        of_both = 0.25 * words.state_dict()[name] + 0.75 * told.state_dict()[name]
        torch.testing.assert_close(value, of_both, msg=name)


def test_a_phase_starts_from_the_mean_that_the_one_before_ends_with(tmp_path: Path) -> None:
    words, told = small_flow().phases
    still = replace(told, steps=1, rate_share=0.0)
    config = replace(small_flow(), phases=(words, replace(told, stays=0.25), still), final_rate=0.0)
    run = flow.Run(config, tmp_path, Words())
    for _ in range(config.steps):
        run.update()
    apart = replace(config, phases=(words, told, still))
    one, two = (flow.averaged(apart, tmp_path, phase).state_dict() for phase in (1, 2))
    for name, value in run.pair.state_dict().items():
        torch.testing.assert_close(value, 0.25 * one[name] + 0.75 * two[name], msg=name)


def test_what_tells_words_apart_may_weigh_less_where_words_decide(tmp_path: Path, bank: ClipBank) -> None:
    config = small_flow()
    batch = flow_batches.batch_of(replace(config.phases[0].batches, fresh_share=0.0), bank, 1, 0)
    found = []
    for share in (1.0, 0.5, 0.0):
        phase = replace(config.phases[0], mistaken_share=share)
        run = flow.Run(replace(config, phases=(phase,)), tmp_path, Words())
        run.pair.eval()
        torch.nn.init.normal_(run.pair.network.final_layer.linear.weight, generator=torch.Generator().manual_seed(1))
        run._gradients(batch)
        found.append(run.pair.network.final_layer.linear.weight.grad.clone())
    whole, half, none = found
    assert not torch.allclose(whole, none)
    torch.testing.assert_close(half, (whole + none) / 2)


# Two threads round differently from run to run, and Muon turns a rounding of what is nearly 0 into a step.
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_flow_run_continues_as_if_nothing_happened(tmp_path: Path) -> None:
    config = small_flow()
    whole = flow.train(config, tmp_path / "whole", Words())
    first = flow.Run(config, tmp_path / "parts", Words())
    for _ in range(6):
        first.update()
    first.save()
    parts = flow.train(config, tmp_path / "parts", Words())
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_shares_are_told_with_how_sure_they_are() -> None:
    assert evaluate.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert evaluate.interval(1.0, 64) == pytest.approx((0.9434, 1.0), abs=1e-4), "all right is not sure to be all"
    assert (
        evaluate.told({"colour": 0.5, "shape": 1.0}, 100) == "colour 50.0% (40.4 to 59.6), shape 100.0% (96.3 to 100.0)"
    )


def test_every_phase_of_a_run_can_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: LatentCode, any_tokenizer: str
) -> None:
    config, sheet = small_flow(), tmp_path / "sheet.png"
    flow.train(config, tmp_path, Words())
    monkeypatch.setitem(evaluate.RECIPES, "1.3", config)
    for name, part in {"tokenizer_of": Words(), "code_in": code}.items():
        monkeypatch.setattr(evaluate, name, lambda *_, part=part: part)

    def evaluated(*options: str) -> bytes:
        evaluate.main(
            ["--flow", str(tmp_path), "--tokenizer", any_tokenizer, "--count", "1", "--sheet", str(sheet), *options]
        )
        return sheet.read_bytes()

    last, first, other = evaluated(), evaluated("--phase", "1"), evaluated("--seed", "1")
    assert len({last, first, other}) == 3
    assert evaluated("--phase", "2", "--seed", "0") == last


def test_the_older_model_goes_on_from_the_exported_newer(tmp_path: Path) -> None:
    config = small_flow()
    newer = Pair(config)
    export.write_pair(tmp_path, newer, config, steps=8)
    weights = exported_network(tmp_path / NETWORK_FILE.format("1.3"), "1.2") | exported_text_encoder(tmp_path)
    assert weights.keys() == {name for name in newer.state_dict() if not name.startswith(("clock.", "shape_reader."))}
    network = STDiT3Config(version="1.2", depth=1, hidden_size=24, num_heads=2, in_channels=4, caption_channels=8)
    phase = Phase(2, replace(config.phases[1].batches, masks_like_given=0.5), trains_text=False)
    run = flow.Run(replace(config, network=network, phases=(phase,)), tmp_path, Words(), weights)
    assert run.pair.network.x_embedder.proj.weight.shape[1] == 4
    taken = run.pair.network.spatial_blocks[0].mlp.fc1.weight.detach().clone()
    torch.testing.assert_close(taken, newer.network.spatial_blocks[0].mlp.fc1.weight, rtol=1e-3, atol=1e-6)
    for _ in range(phase.steps):
        run.update()
    assert not torch.equal(run.pair.network.spatial_blocks[0].mlp.fc1.weight, taken)
    for name, value in run.pair.text_encoder.state_dict().items():
        assert torch.equal(value, weights[f"text_encoder.{name}"]), name


def test_padding_of_captions_changes_nothing(bank: ClipBank) -> None:
    config = small_flow()
    networks = Pair(config).eval()
    batch = flow_batches.batch_of(config.phases[0].batches, bank, 1, 1)
    torch.nn.init.normal_(networks.network.final_layer.linear.weight)
    for block in networks.network.blocks():
        torch.nn.init.normal_(block.cross_attn.proj.weight)
    ids, kept = Words().padded(batch.captions, flow_batches.TEXT_LENGTH)
    states = networks.states(ids, kept, batch.has_text)
    with_padding = networks.velocity(batch.latents, batch.times, states, kept, batch.bucket)
    rows = [row[keep] for row, keep in zip(states, kept, strict=True)]
    exact = networks.network(
        batch.latents, batch.times, rows, fps=batch.bucket.fps, height=batch.bucket.height, width=batch.bucket.width
    )
    torch.testing.assert_close(with_padding, exact[:, :16], rtol=1e-4, atol=1e-5)


def test_batches_tell_frames_and_drop_words(bank: ClipBank) -> None:
    config = replace(small_flow().phases[1].batches, given_share=0.5, text_dropout=0.5, given_dropout=0.5)
    batches = [flow_batches.batch_of(config, bank, 2, step) for step in range(40)]
    videos = [batch for batch in batches if batch.bucket.frames > 1]
    assert {bool(batch.given) for batch in videos} == {True, False}
    assert all(batch.frame_mask is None or not batch.given for batch in videos)
    assert all(batch.bank is None for batch in videos if batch.given or batch.frame_mask is not None)
    assert len({batch.given for batch in videos}) > 4
    for drawn in (torch.cat([b.has_text for b in batches]), torch.cat([b.given_kept for b in batches])):
        assert 0.3 < drawn.float().mean() < 0.7
    times = torch.cat([batch.times for batch in batches])
    assert 0 < times.min() < 100 and 900 < times.max() <= 1000
    again = flow_batches.batch_of(config, bank, 2, 0)
    torch.testing.assert_close(again.latents, batches[0].latents)


def test_a_batch_from_the_bank_shows_what_its_words_say(bank: ClipBank) -> None:
    config = replace(small_flow().phases[0].batches, fresh_share=0.0)
    batch = flow_batches.batch_of(config, bank, 2, 0)
    assert batch.bank is not None and batch.bank.shape == (3, bank.size, *batch.latents.shape[1:])
    assert all("black" in text for text in batch.captions if "background" in text)
    for own, row in zip(batch.latents, batch.bank, strict=True):
        assert any(torch.equal(own, clip) for clip in row)
    with pytest.raises(ValueError, match="no patterns"):
        ClipBank(bank.code, scenes.SceneConfig())


def test_given_clips_have_themselves_at_rest_as_a_rival(bank: ClipBank) -> None:
    config = replace(small_flow().phases[1].batches, given_share=1.0, rivals=True, given_rivals=True)
    batch = flow_batches.batch_of(replace(config, buckets=SMALL_CLIPS[:1]), bank, 2, 0)
    assert batch.given and batch.bank is None and batch.rivals is not None
    (rest,) = batch.rivals[:, 0].unbind(1)
    torch.testing.assert_close(rest[:, :, 0], batch.latents[:, :, 0], rtol=0, atol=0)
    assert rest.shape == batch.latents.shape


def test_masked_clips_have_themselves_at_rest_and_evenly_timed_as_rivals_where_they_are_noisy() -> None:
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    config = flow_batches.BatchConfig(
        buckets=(flow_batches.Bucket(34, 32, 32, batch=8, share=1.0),), frame_mask_share=1.0, masks_like_given=1.0,
        masked_rivals=True, even_rivals=True, scenes=flow_batches.HALTING,
    )  # fmt: skip
    batch = flow_batches.batch_of(config, ClipBank(code, flow_batches.FROM_MIDDLE, size=2), 2, 0)
    assert batch.frame_mask is not None and batch.rivals is not None
    rest, even = batch.rivals[:, :, 0].unbind(1)
    noisy = batch.frame_mask[:, None, :, None, None].expand_as(rest)
    for rival in (rest, even):
        assert torch.equal(rival[~noisy], batch.latents[~noisy]), "nothing to mistake in a clean frame"
        assert float((rival - batch.latents)[noisy].abs().max()) > 0.1

    network = STDiT3Config(
        version="1.2", depth=1, hidden_size=24, num_heads=2, in_channels=4, caption_channels=8
    )  # fmt: skip
    losses = losses_of(Pair(replace(small_flow(), network=network)), Words(), batch)
    assert losses.mistaken is not None and 0 < losses.mistaken.item() < 2 * len(batch.latents)
    assert losses.velocity.item() > 0 and losses.worded is None


@pytest.mark.parametrize(("frames", "last"), [(34, 5), (51, 10)])
def test_where_clean_frames_decide_all_rows_come_with_words_and_without(frames: int, last: int) -> None:
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    config = flow_batches.BatchConfig(
        buckets=(flow_batches.Bucket(frames, 32, 32, batch=15, share=1.0),), frame_mask_share=1.0, decided_share=1.0,
        masked_rivals=True, scenes=flow_batches.HALTING,
    )  # fmt: skip
    batch = flow_batches.batch_of(config, ClipBank(code, flow_batches.FROM_MIDDLE, size=2), 2, 0)
    assert batch.decided and batch.frame_mask is not None and batch.rivals is not None
    assert batch.has_text.tolist() == [True, False] * 7
    assert batch.captions[0::2] == batch.captions[1::2]
    for value in (batch.latents, batch.noise, batch.times, batch.frame_mask, batch.rivals):
        assert torch.equal(value[0::2], value[1::2]) and len(value) == 14
    kept = {tuple(np.flatnonzero(~row.numpy()).tolist()) for row in batch.frame_mask}
    assert kept == {(0, last), tuple(range(last))}, "joins and extensions"
    assert [len(part.latents) for part in batch.parts(2)] == [6, 8], "twos stay together"


def test_clips_of_one_group_have_nothing_decided() -> None:
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    config = flow_batches.BatchConfig(
        buckets=(flow_batches.Bucket(17, 32, 32, batch=4, share=1.0),), frame_mask_share=1.0, decided_share=1.0
    )
    batch = flow_batches.batch_of(config, ClipBank(code, flow_batches.FROM_MIDDLE, size=2), 2, 0)
    assert batch.frame_mask is not None and not batch.decided and len(batch.latents) == 4


def test_what_words_change_counts_in_noisy_frames_alone() -> None:
    frame_mask = torch.tensor([[False, True, True]]).repeat(4, 1)
    velocity = torch.zeros(4, 2, 3, 2, 2)
    velocity[1] = 1.0  # the words of the first row change every frame by 1
    velocity[2:] = 7.0
    velocity[3, :, 0] = 0.0  # those of the second only what is clean
    assert worded(velocity, frame_mask).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_words_are_trained_to_change_nothing_that_clean_frames_decide() -> None:
    network = STDiT3Config(version="1.2", depth=1, hidden_size=24, num_heads=2, in_channels=4, caption_channels=8)
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    config = flow_batches.BatchConfig(
        buckets=(flow_batches.Bucket(34, 32, 32, batch=4, share=1.0),), frame_mask_share=1.0, decided_share=1.0
    )
    batch = flow_batches.batch_of(config, ClipBank(code, flow_batches.FROM_MIDDLE, size=2), 2, 0)
    pair = Pair(replace(small_flow(), network=network))
    for block in pair.network.blocks():  # words are silent at the start
        torch.nn.init.normal_(block.cross_attn.proj.weight)
    torch.nn.init.normal_(pair.network.final_layer.linear.weight)
    adam = torch.optim.Adam(pair.parameters(), 1e-3)
    sums = []
    for _ in range(8):
        losses = losses_of(pair, Words(), batch)
        assert losses.worded is not None
        sums.append(losses.worded.item())
        adam.zero_grad()
        losses.worded.backward()
        adam.step()
    assert 0 < sums[-1] < 0.7 * sums[0], sums


def test_evenly_timed_latents_move_on_by_the_same_step_where_groups_meet() -> None:
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    scene = scenes.Scene("red", "square", "right", "black", x=0.25, y=0.5, radius=0.15, speed=0.015)
    clips, evenly = (made([scene], 34, 64, 64) for made in (code.clips, code.evenly))
    for latents, meeting in ((clips, 0.4), (evenly, 1.0)):
        changes = latents.diff(dim=2).abs().mean((0, 1, 3, 4))
        np.testing.assert_allclose(changes[4] / changes.mean(), meeting, atol=0.2)


def test_a_join_keeps_the_given_frames_and_its_way_is_measured() -> None:
    code = LatentCode(autoencoder.new_autoencoder(autoencoder.RECIPES["1.2"]))
    rows = joins.ways()
    real = code.clips(rows, 34, 64, 64)
    way = np.median(joins.shares_of_way(code, real, real, rows), axis=0)
    np.testing.assert_allclose(way, [0, 4 / 16, 8 / 16, 12 / 16, 1, 1], atol=0.1)
    network = STDiT3Config(
        version="1.2", depth=1, hidden_size=24, num_heads=2, in_channels=4, caption_channels=8
    )  # fmt: skip
    pair = Pair(replace(small_flow(), network=network)).eval()
    captions = ["a red square moving left"] * len(rows)
    made = sample(pair, Words(), captions, joins.CLIP, SamplingConfig(steps=2), given=real, indices=(0, 5))
    kept, free = [0, 5], [1, 2, 3, 4, 6, 7, 8, 9]
    assert torch.equal(made[:, :, kept], real[:, :, kept])
    assert float((made - real)[:, :, free].abs().mean()) > 0.1


def test_rivals_differ_in_the_shape_or_the_motion_and_are_never_held_out(bank: ClipBank) -> None:
    asked: list[tuple[str, str, str, str]] = []

    class Noting(ClipBank):
        def __call__(self, words: tuple[str, str, str, str], *size: int) -> torch.Tensor:
            asked.append(words)
            return super().__call__(words, *size)

    noting = Noting(bank.code, flow_batches.FROM_MIDDLE, size=2)
    config = replace(small_flow().phases[0].batches, buckets=SMALL_CLIPS[:1], fresh_share=0.0, rivals=True)
    for step in range(8):
        batch = flow_batches.batch_of(config, noting, 2, step)
        own, *others = asked[:3], asked[3::2], asked[4::2]
        assert batch.rivals is not None and batch.rivals.shape == (3, 2, 2, *batch.latents.shape[1:])
        for index, row in enumerate(own):
            for place, other in zip((1, 2), (others[0][index], others[1][index]), strict=True):
                assert [k for k in range(4) if other[k] != row[k]] in ([place], []), "nothing else differs"
                assert scenes.is_trained(*other[:3])
        asked.clear()
    turning = flow_batches.batch_of(replace(config, motions=("rotate",), rest=True), bank, 2, 0)
    assert turning.bank is not None and turning.rivals is not None
    resting = turning.rivals[:, 1]
    torch.testing.assert_close(resting[:, :, :, :1], turning.bank[:, :, :, :1], rtol=0, atol=0)
    assert float((resting - resting[:, :, :, :1]).abs().max()) == 0.0, "the same shape, at rest"
    picture = flow_batches.batch_of(replace(config, buckets=SMALL_CLIPS[1:]), noting, 2, 0)
    assert picture.rivals is not None and picture.rivals.shape[1] == 1, "a picture does not show motion"


def test_mistaken_is_0_for_the_own_clip_and_1_for_the_rival(bank: ClipBank) -> None:
    clips, rival = (bank(("red", shape, "left", "black"), 17, 32, 32).float()[None] for shape in ("circle", "square"))
    noise = torch.randn(1, *clips.shape[2:], generator=torch.Generator().manual_seed(0))
    for level in (1.0, 0.5):
        x, levels = (1 - level) * clips[:, 0] + level * noise, torch.tensor([level])
        right, wrong = expected(x, levels, clips), expected(x, levels, rival)
        for share in (0.0, 0.5, 1.0):
            got = mistaken(share * (wrong - right), x, levels, clips, rival[:, None])
            torch.testing.assert_close(got.item(), share**2, rtol=1e-4, atol=1e-6)
        assert float(mistaken(wrong - right, x, levels, clips, clips[:, None])) == 0.0, "no rival, no mistake"


def test_the_expected_clip_is_the_mean_in_noise_and_the_own_clip_without(bank: ClipBank) -> None:
    clips = bank(("red", "circle", "left", "black"), 17, 32, 32).float()[None]
    noise = torch.randn(1, *clips.shape[2:], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(expected(noise, torch.ones(1), clips), clips.mean(1))
    own = clips[:, 2]
    torch.testing.assert_close(expected(0.9 * own + 0.1 * noise, torch.tensor([0.1]), clips), own, rtol=0, atol=1e-3)
    # In one dimension, by Bayes' rule: two clips at -1 and 1 with noise of deviation 1 give tanh.
    pair = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1, 1, 1)
    got = expected(torch.full((1, 1, 1, 1, 1), 0.3), torch.tensor([0.5]), pair)
    torch.testing.assert_close(got.item(), np.tanh(0.3 * 0.5 / 0.5**2), rtol=1e-5, atol=1e-6)


def test_learned_shares_are_0_for_the_common_mean_and_1_for_the_clips_themselves() -> None:
    means = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    common = means.mean(0, keepdim=True).expand_as(means)
    for share in (0.0, 0.25, 1.0):
        torch.testing.assert_close(
            learned_shares(common + share * (means - common) + 7, means), torch.full((5,), share)
        )
