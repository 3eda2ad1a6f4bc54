"""The drawn training clips: seeded, never a combination kept out, and readable back into their words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opensora.training import captions, rendering, scenes
from opensora.training.latents import carrying_frames
from opensora.training.pictures import contact_sheet, draw_curves, to_bytes
from opensora.training.reading import Reading, read_clip

PLAIN = scenes.SceneConfig(pattern_share=0.0, camera_share=0.0)


def drawn(words: tuple[str, str, str], seed: int = 0, **size: int) -> np.ndarray:
    """Frames of one scene."""
    rng = np.random.default_rng(seed)
    frames, height, width = size.get("frames", 17), size.get("height", 64), size.get("width", 64)
    scene = scenes.place_scene(rng, *words, frames=frames, aspect=width / height, config=PLAIN)
    return to_bytes(rendering.render([scene], frames, height, width)[0])


def test_combinations_kept_out_are_enough_and_every_word_is_still_trained() -> None:
    kept_out = [*scenes.held_out(), *scenes.set_aside()]
    trained = set(scenes.combinations()) - set(kept_out)
    assert (len(scenes.held_out()), len(scenes.set_aside())) == (64, 32)
    assert len(set(kept_out)) == 96, "nothing that was decided on is among those set aside"
    assert {row for row in scenes.combinations() if scenes.is_trained(*row)} == trained
    for place, words in enumerate((scenes.COLOURS, scenes.SHAPES, scenes.MOTIONS)):
        assert {row[place] for row in trained} == set(words)


def test_shapes_may_shrink_less_than_others_grow() -> None:
    config = replace(PLAIN, shrinking=(0.1, 0.2))
    for seed in range(20):
        for motion, least, most in (("grow", 0.45, 0.6), ("shrink", 0.1, 0.2)):
            scene = scenes.place_scene(np.random.default_rng(seed), "red", "star", motion, frames=17, config=config)
            assert least <= scene.speed * scenes.REFERENCE_SIDE <= most, motion
            radius = scenes.tracks(scene, 17)["radius"]
            assert (radius[-1] - radius[0]) / 16 == pytest.approx(
                scene.speed * (1 if motion == "grow" else -1), rel=1e-4
            )


def test_training_never_draws_a_combination_kept_out() -> None:
    rng = np.random.default_rng(1)
    drawn_rows = [scenes.draw_scene(rng, 17, 1.0, scenes.SceneConfig()) for _ in range(400)]
    words = {(scene.colour, scene.shape, scene.motion) for scene in drawn_rows}
    assert len(words) > 100
    assert not words & {*scenes.held_out(), *scenes.set_aside()}
    assert all(row[1:] != ("circle", "rotate") for row in words)


def test_every_combination_kept_out_reads_back() -> None:
    for number, words in enumerate((*scenes.held_out(), *scenes.set_aside())):
        assert read_clip(drawn(words, seed=number)) == Reading(*words), words


@pytest.mark.parametrize("size", [{"height": 48, "width": 80}, {"height": 96, "width": 96}, {"frames": 33}])
def test_other_sizes_and_lengths_read_back(size: dict[str, int]) -> None:
    words = ("blue", "square", "right")
    assert read_clip(drawn(words, **size)) == Reading(*words)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_soft_outlines_read_back(shape: str) -> None:
    right = 0
    for seed in range(10):
        frames = torch.from_numpy(drawn(("red", shape, "still"), seed=seed)).permute(3, 0, 1, 2).float()
        for _ in range(3):  # about as soft as a tiny decoder draws
            frames = F.avg_pool3d(frames, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
        right += read_clip(frames.permute(1, 2, 3, 0).round().byte().numpy()).shape == shape
    assert right >= 9, right


def test_an_empty_picture_reads_as_nothing() -> None:
    assert read_clip(np.full((17, 64, 64, 3), 128, np.uint8)) == Reading(None, None, None)


def test_rendering_is_seeded_and_smooth() -> None:
    first, again = drawn(("red", "star", "left")), drawn(("red", "star", "left"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, drawn(("red", "star", "left"), seed=1))
    assert len(np.unique(first[0][..., 0])) > 8, "outlines are anti-aliased"


def test_part_of_a_clip_equals_the_whole() -> None:
    rng = np.random.default_rng(2)
    scene = scenes.place_scene(rng, "green", "triangle", "bounce", frames=17, config=PLAIN)
    whole = rendering.render([scene], 17, 64, 64)
    torch.testing.assert_close(rendering.render_frames([scene], [0, 4, 16], 64, 64), whole[:, :, [0, 4, 16]])


def test_a_way_that_halts_fits_in_before_its_end_and_rests_after() -> None:
    halting = replace(PLAIN, halting_share=0.7)
    rng = np.random.default_rng(5)
    drawn = [scenes.place_scene(rng, "red", "circle", "right", frames=34, config=halting) for _ in range(60)]
    halts = [scene for scene in drawn if scene.moves is not None]
    assert 30 < len(halts) < 54 and {scene.moves is None for scene in drawn} == {True, False}
    for scene in halts:
        x = scenes.tracks(scene, 34)["x"]
        steps = np.diff(x)
        assert 17 <= scene.moves < 34 and (steps[: scene.moves - 1] > 0).all() and (steps[scene.moves - 1 :] == 0).all()
    within = [scene for scene in halts if scene.moves < 24]  # a longer way does not fit whatever the place
    assert within and all(scenes.tracks(scene, 34)["x"].max() < 1 - scene.radius for scene in within)
    assert np.ptp([scene.x for scene in within]) > 0.15, "they begin anywhere"
    short = [scenes.place_scene(rng, "red", "circle", "right", frames=17, config=halting) for _ in range(20)]
    assert all(scene.moves is None for scene in short), "clips of one group never halt"


def test_captions_name_what_is_shown() -> None:
    rng = np.random.default_rng(3)
    phrasings = set()
    for _ in range(200):
        scene = scenes.draw_scene(rng, 17, 1.0, scenes.SceneConfig(0.3, 0.3))
        text = captions.caption(scene, rng)
        phrasings.add(text.replace(scene.colour, "C").replace(scene.shape, "S"))
        assert scene.colour in text and scene.shape in text and text == text.lower()
        assert any(words in text for words in captions.MOTION_WORDS[scene.motion])
        assert scene.camera is None or f"camera motion: {scene.camera}." in text
    assert len(phrasings) > 60
    assert captions.simple_caption("orange", "star", "up") == "an orange star moving up"


def test_latents_follow_the_groups_of_the_autoencoder() -> None:
    assert carrying_frames("1.3", 1) == carrying_frames("1.2", 1) == [0]
    assert carrying_frames("1.3", 17) == carrying_frames("1.2", 17) == [0, 4, 8, 12, 16]
    assert carrying_frames("1.3", 33) == [0, 4, 8, 12, 16, 16, 20, 24, 28, 32]
    assert carrying_frames("1.2", 34) == [0, 4, 8, 12, 16, 17, 21, 25, 29, 33]
    assert carrying_frames("1.2", 33) == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_pictures_of_clips_and_curves(tmp_path) -> None:
    clip = torch.zeros(3, 17, 32, 48)
    assert contact_sheet([clip, clip], every=4).size == (5 * 50, 2 * 34)
    draw_curves({"loss": [(0, 2.0), (1, 1.0)], "single": [(0, 1.0)]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 100
