"""The table of outlines: what is counted, its interval, and the same clips drawn, coded and generated."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora.training import autoencoder, evaluate, export, exported, outlines, rendering, scenes
from opensora.training.flow_recipes import TEXT_ENCODER
from opensora.training.flow_sampling import SamplingConfig
from opensora.training.pair import Pair


class Words:
    """Stands for the tokenizer, which comes with ComfyUI."""

    def ids(self, text: str) -> list[int]:
        return [*(2 + sum(map(ord, word)) % 90 for word in text.split()), 1]

    def padded(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([(self.ids(text) + [0] * length)[:length] for text in texts])
        return ids, ids > 0


def test_every_combination_of_a_shape_is_measured() -> None:
    circles = outlines.rows_of("circle", False)
    assert len(circles) == 7 * 8 and {row[1] for row in circles} == {"circle"}
    assert set(outlines.rows_of("circle", True)) == {row for row in scenes.held_out() if row[1] == "circle"}
    assert len(outlines.rows_of("all", False)) == len(scenes.combinations())


def test_the_interval_is_over_clips() -> None:
    values = np.array([[0.9, 0.9, np.nan], [0.7, 0.7, 0.7], [np.nan] * 3])
    mean, half = outlines.mean_and_interval(values)
    assert mean == pytest.approx(0.8)
    assert half == pytest.approx(1.96 * np.std([0.9, 0.7], ddof=1) / 2**0.5)
    assert np.isnan(outlines.mean_and_interval(values[2:])[0])


def test_drawn_circles_are_round_and_softer_ones_have_wider_edges() -> None:
    config = scenes.SceneConfig(0.0, 0.0, spread=0.3, from_middle=True)
    drawn = rendering.render(outlines.drawn_scenes(outlines.rows_of("circle", False)[:6], config, 0), 5, 64, 64)
    soft = torch.nn.functional.avg_pool3d(drawn, (1, 5, 5), stride=1, padding=(0, 2, 2), count_include_pad=False)
    sharp, blurred = outlines.measured(list(drawn)), outlines.measured(list(soft))
    assert np.nanmin(sharp.compactness) > 0.99 and np.nanmean(sharp.edge) == pytest.approx(2.05, abs=0.1)
    assert blurred.said(sharp).endswith(f"and {np.nanmean(blurred.edge) / np.nanmean(sharp.edge):.2f}")
    assert np.nanmean(blurred.edge) > 1.4 * np.nanmean(sharp.edge)


def test_what_is_read_off_clips_is_held_against_their_words() -> None:
    config = scenes.SceneConfig(0.0, 0.0, spread=0.3, from_middle=True)
    rows = [("red", "circle", "left"), ("blue", "star", "still")]
    drawn = [
        *rendering.render(
            [*outlines.drawn_scenes(rows, config, 0), *outlines.drawn_scenes(rows, config, 1)], 17, 64, 64
        )
    ]
    assert outlines.read_right(rows, drawn) == "colour 100.0%, shape 100.0%, motion 100.0%"
    assert outlines.read_right(rows, drawn[::-1]) == "colour 0.0%, shape 0.0%, motion 0.0%"


def written(models: Path) -> Pair:
    """Untrained files of 1.3, and the diffusion model in them."""
    recipe = TEXT_ENCODER
    torch.manual_seed(0)
    pair, model = Pair(recipe).eval(), autoencoder.new_autoencoder(autoencoder.RECIPES["1.3"])
    export.write_pair(models, pair, recipe, 0)
    export.write_autoencoder(models, model, autoencoder.RECIPES["1.3"], 0)
    return pair


def test_exported_files_come_back_and_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, any_tokenizer: str
) -> None:
    pair = written(tmp_path)
    again = exported.exported_pair(tmp_path, "1.3")
    captions, config = ["a red circle standing still"], SamplingConfig(steps=2)
    noise = [evaluate.sampled(one, Words(), captions, config) for one in (pair, again)]
    torch.testing.assert_close(*noise, rtol=0.01, atol=0.01)

    monkeypatch.setattr(outlines, "tokenizer_of", lambda *_: Words())
    sheet = tmp_path / "sheet.png"
    with caplog.at_level(logging.INFO):
        outlines.main(
            ["--models", str(tmp_path), "--tokenizer", any_tokenizer, "--count", "2", "--steps", "1", "2",
             "--guidance", "1", "--seed", "3", "--noise", "0.5", "--sheet", str(sheet)]
        )  # fmt: skip
    lines = [line for line in caplog.messages if line.startswith("1.3, ")]
    assert [line.split(": ")[0].removeprefix("1.3, ") for line in lines] == [
        "drawn", "through the autoencoder", "through the autoencoder, frames that carry latents",
        "through the autoencoder, frames between them", "noise 0.5 on latents", "guidance 1, 1 steps",
        "guidance 1, 2 steps",
    ]  # fmt: skip
    assert "compactness 0.99" in lines[0] and sheet.is_file()
    assert [number for number, line in enumerate(lines) if "; right: colour " in line] == [1, 4, 5, 6]

    path = tmp_path / exported.NETWORK_FILE.format("1.3")
    weights = load_file(path)
    lost = weights.popitem()[0]
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"lacks '.*{lost.split('.')[-1]}': its weights are those of another network"):
        exported.exported_pair(tmp_path, "1.3")


def test_exported_files_are_read_over_several_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, any_tokenizer: str
) -> None:
    pair = written(tmp_path)
    monkeypatch.setattr(evaluate, "tokenizer_of", lambda *_: Words())
    sampled = evaluate.sampled
    monkeypatch.setattr(evaluate, "sampled", lambda *told: sampled(*told[:3], replace(told[3], steps=2), *told[4:]))
    latents = list(evaluate.generated(pair, Words(), ["a red circle"], (0, 1), SamplingConfig(steps=2)))
    assert len(latents) == 2 and not torch.equal(*latents), "every seed has noise of its own"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        evaluate.main(
            [
                "--models",
                str(tmp_path),
                "--tokenizer",
                any_tokenizer,
                "--count",
                "2",
                "--seed",
                "0",
                "1",
                "2",
                "--frames",
                "33",
            ]
        )
    assert caplog.messages[-1].startswith("1.3: 2 prompts, 6 clips of 33 frames, with 95 % intervals: colour ")
    assert len(caplog.messages) == 7, "what every clip was read as, and the shares"
