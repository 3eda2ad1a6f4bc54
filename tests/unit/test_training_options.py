"""The command lines of training refuse what cannot be at the door: before anything is loaded, in one line."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.training import autoencoder, export, flow
from opensora.training import options as option
from opensora.training.clip_l import PairTokenizer
from opensora.training.evaluate import read_rows
from opensora.training.exported import NETWORK_FILE, exported_autoencoder
from opensora.training.flow_recipes import RECIPES
from opensora.training.latents import LatentCode
from opensora.training.progress import CHECKPOINT_NAME, Progress
from opensora.training.refused import Refused
from opensora.training.text_encoder import Tokenizer
from support.pack import PACK_ROOT
from support.shipped import DEMO

# What a command cannot do without.
NEEDED = {
    "evaluate": [],
    "kept": [],
    "outlines": [],
    "joins": ["--flow", "run"],
    "probe": ["--flow", "run"],
    "export": ["out", "--autoencoder", "run", "--flow", "run"],
    "flow": ["out", "--before", str(DEMO)],
    "autoencoder": ["out"],
}


@pytest.fixture
def place(tmp_path: Path, any_tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of three phases, of which two are done, and a tokenizer; the working directory."""
    (tmp_path / "run").mkdir()
    for name in (CHECKPOINT_NAME, "phase-1.pt", "phase-2.pt"):
        (tmp_path / "run" / name).touch()
    (tmp_path / "words.txt").write_text("red circle left\nred ball left\n", encoding="utf-8")
    (tmp_path / "short.txt").write_text("red circle\n", encoding="utf-8")
    (tmp_path / "good.txt").write_text("red circle left\n", encoding="utf-8-sig")
    (tmp_path / "wide.txt").write_text("red circle left\n", encoding="utf-16")
    (tmp_path / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "asked", "said"),
    [
        ("evaluate", ["--models", "none"], "--models: 'none' is no models folder: it has none of diffusion_models, "),
        ("kept", ["--models", "run"], "--models: 'run' is no models folder"),
        ("outlines", ["--flow", "none"], f"--flow: there is no training run in 'none': it has no {CHECKPOINT_NAME}"),
        ("evaluate", ["--autoencoder", "none"], "--autoencoder: there is no training run in 'none'"),
        ("joins", ["--tokenizer", "none"], "--tokenizer: there is no tokenizer.json in 'none'; give ComfyUI's t5_"),
        ("probe", ["--code", "none"], "--code: 'none' is no models folder"),
        ("evaluate", ["--count", "0"], "--count: '0' is not a whole number from 1 to 1000000000"),
        ("kept", ["--count", "many"], "--count: 'many' is not a whole number from 1 to 1000000000"),
        ("evaluate", ["--seed", "-1"], "--seed: '-1' is not a whole number from 0 to 4294967295"),
        ("outlines", ["--seed", "1.5"], "--seed: '1.5' is not a whole number from 0 to 4294967295"),
        ("outlines", ["--steps"], "--steps: expected at least one argument"),
        ("kept", ["--words"], "--words: expected at least one argument"),
        ("evaluate", ["--guidance", "nan"], "--guidance: 'nan' is not a number from 0 on"),
        ("outlines", ["--noise", "much"], "--noise: 'much' is not a number from 0 on"),
        ("evaluate", ["--frames", "18"], "18 was given; the nearest good value is 17"),
        ("evaluate", ["--sheet", "a.jpg"], "--sheet: 'a.jpg' does not end in .png"),
        ("evaluate", ["--sheet", "none/a.png"], "--sheet: there is no folder 'none'"),
        ("evaluate", ["--prompts", "none.txt"], "--prompts: there is no file 'none.txt'"),
        ("evaluate", ["--prompts", "short.txt"], "'red circle' in 'short.txt' is not of the form 'colour"),
        ("evaluate", ["--prompts", "words.txt"], "'ball' in 'red ball left' of 'words.txt' is none of circle, square"),
        ("evaluate", ["--prompts", "empty.txt"], "There is no line in 'empty.txt'"),
        ("evaluate", ["--prompts", "wide.txt"], "--prompts: 'wide.txt' is no text in UTF-8"),
        ("evaluate", ["--prompts", "good.txt", "--set-aside"], "--set-aside: not allowed with argument --prompts"),
        ("outlines", ["--seed", "99999999999999999999"], "is not a whole number from 0 to 4294967295"),
        ("evaluate", ["--phase", "1"], "--phase is one of a training run, which --flow names"),
        ("kept", ["--flow", "run", "--phase", "99"], "--phase: 99 is none of the recipe's; its last is "),
        ("export", ["--phase", "3"], "--phase: 'run' has not come to the end of phase 3"),
        ("export", ["--autoencoder", "none"], "--autoencoder: there is no training run in 'none'"),
        ("flow", ["--start", "none"], "--start: there is no file 'none'"),
        ("flow", ["--clip-tokenizer", "none"], "--clip-tokenizer: there is no vocab.json in 'none'"),
        ("autoencoder", ["--until", "0"], "--until: '0' is not a whole number from 1 to 1000000000"),
        ("autoencoder", ["--lpips", "none"], "--lpips: there is no file 'none'"),
        ("autoencoder", ["--calibrate", "--until", "5"], "--until has no use here: --calibrate tells the time of all"),
        ("evaluate", ["--flow", "run"], "--models has no use here: --flow is measured instead"),
        ("evaluate", ["--code", str(DEMO)], "--code has no use here: latents are told beside --flow alone"),
        ("outlines", ["--flow", "run", "--autoencoder", "run"], "--models has no use here: --flow and --autoencoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_made(
    command: str, asked: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str], any_tokenizer: str
) -> None:
    before = {path for path in place.rglob("*")}
    words = [] if command in ("export", "autoencoder") else ["--tokenizer", any_tokenizer]
    models = ["--models", str(DEMO)] if command in ("evaluate", "kept", "outlines") else []
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"opensora.training.{command}").main([*NEEDED[command], *words, *models, *asked])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and said in line
    assert {path for path in place.rglob("*")} == before


def test_what_is_there_is_taken(place: Path, any_tokenizer: str) -> None:
    taken: dict[Any, str] = {
        option.models: str(DEMO), option.run: "run", option.tokenizer: any_tokenizer, option.file: "words.txt",
        option.new_folder: "to/come", option.sheet: "a.png",
    }  # fmt: skip
    for kind, text in taken.items():
        assert kind(text) == Path(text)
    assert (option.count("1"), option.seed("0"), option.amount("0.5")) == (1, 0, 0.5)
    parser, options = argparse.ArgumentParser(), argparse.Namespace(flow=Path("run"), phase=2)
    option.check_phase(parser, options, RECIPES["1.3"])
    option.check_frames(parser, 33, "2.0")


def test_a_prompt_list_may_begin_as_windows_writes_it(place: Path) -> None:
    assert read_rows(place / "good.txt") == [("red", "circle", "left")]


def saved(folder: Path, model: torch.nn.Module) -> Path:
    """A run that has saved ``model``."""
    Progress(folder).save({"step": 1, "model": model.state_dict(), "average": {}})
    return folder


@pytest.mark.parametrize(
    ("command", "asked", "said"),
    [
        ("flow", ["new", "--before", str(DEMO), "--start", f"{DEMO}/diffusion_models/opensora-tiny-v2.0.safetensors"],
         "has no weight that a diffusion model of 1.3 has"),
        ("autoencoder", ["new", "--encoder", f"{DEMO}/vae/opensora-tiny-vae-v1.2.safetensors"],
         "holds no encoder of 1.3"),
        ("autoencoder", ["other"], "The run in 'other' is of another release, kind or recipe than is asked for."),
        ("flow", ["other", "--before", str(DEMO)], "The run in 'other' is of another release, kind or recipe"),
        ("evaluate", ["--flow", "other"], "The run in 'other' is of another release, kind or recipe"),
        ("evaluate", ["--models", str(DEMO), "--release", "1.2", "--autoencoder", "other"], "The run in 'other' is of"),
        ("evaluate", ["--models", "partial"], "There is no 'partial/diffusion_models/opensora-tiny-v1.3.safetensors'."),
        ("evaluate", ["--models", "garbage"], "tiny-v1.3.safetensors' cannot be read as a safetensors file"),
        ("autoencoder", ["new", "--encoder", "short.txt"], "'short.txt' cannot be read as a safetensors file"),
        ("autoencoder", ["new", "--lpips", "short.txt"], "'short.txt' cannot be read as a safetensors file"),
        ("autoencoder", ["new", "--lpips", f"{DEMO}/vae/opensora-tiny-vae-v1.2.safetensors"], "of another network or"),
        ("flow", ["run", "--before", str(DEMO)], f"'run/{CHECKPOINT_NAME}' cannot be read as a checkpoint (EOFError)"),
        ("flow", ["words", "--before", str(DEMO)], f"'words/{CHECKPOINT_NAME}' cannot be read as a checkpoint (Unpick"),
        ("flow", ["row", "--before", str(DEMO)], f"'row/{CHECKPOINT_NAME}' is no checkpoint of a training run."),
    ],
)  # fmt: skip
def test_what_is_of_something_else_is_refused(
    command: str, asked: list[str], said: str, place: Path, monkeypatch: pytest.MonkeyPatch, any_tokenizer: str
) -> None:
    for folder in ("partial/vae", "garbage/diffusion_models", "words", "row"):
        (place / folder).mkdir(parents=True)
    (place / "garbage" / NETWORK_FILE.format("1.3")).write_text("garbage", encoding="utf-8")
    (place / "words" / CHECKPOINT_NAME).write_text("words", encoding="utf-8")
    torch.save([1], place / "row" / CHECKPOINT_NAME)
    saved(place / "other", torch.nn.Linear(2, 2))
    module = importlib.import_module(f"opensora.training.{command}")
    if command != "autoencoder":
        asked = [*asked, "--tokenizer", any_tokenizer]
        monkeypatch.setattr(module, "tokenizer_of", lambda *_: None)
    with pytest.raises(Refused) as refused:
        module.main(asked)
    assert said in str(refused.value).replace("\\", "/")


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path, any_tokenizer: str) -> None:
    with pytest.raises(Refused, match=r"tokenizer.json' is no tokenizer \(.*\); give ComfyUI's t5_tokenizer folder."):
        Tokenizer(Path(any_tokenizer))
    (tmp_path / "vocab.json").write_text("garbage", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    pair = object.__new__(PairTokenizer)  # without a T5 beside it
    pair._clip_folder = tmp_path
    with pytest.raises(Refused, match=r"holds no tokenizer \(.*\); give ComfyUI's sd1_tokenizer folder."):
        pair.clip_ids("a red circle")


def test_nothing_is_exported_where_one_of_two_runs_cannot_be(place: Path) -> None:
    recipe = autoencoder.RECIPES["1.3"]
    autoencoder.train(replace(recipe, stages=(replace(recipe.stages[0], steps=0),)), place / "good")
    with pytest.raises(Refused, match="cannot be read as a checkpoint"):
        export.main(["out", "--autoencoder", "good", "--flow", "run"])
    assert not (place / "out").exists()


def test_a_calibration_reads_what_the_run_would(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    for module in (autoencoder, flow):
        monkeypatch.setattr(module, "calibrate", lambda taking, parts: asked.append(taking.args))
    monkeypatch.setattr(flow, "tokenizer_of", lambda *_: None)
    encoder = str(DEMO / "vae" / "opensora-tiny-vae-v1.3.safetensors")
    autoencoder.main(["new", "--calibrate", "--encoder", encoder])
    words = ["--tokenizer", "t5_tokenizer", "--before", str(DEMO)]
    flow.main(["new", *words, "--calibrate", "--code", str(DEMO)])
    (*_, kept), (*_, code) = asked
    assert len(kept) > 10 and torch.equal(code.weight, LatentCode(exported_autoencoder(DEMO, "1.3")).weight)


def test_an_encoder_that_fits_starts_a_run_and_is_not_read_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(autoencoder, "train", lambda *told: trained.append(told[-1]))
    asked = ["new", "--encoder", str(DEMO / "vae" / "opensora-tiny-vae-v1.3.safetensors")]
    autoencoder.main(asked)
    assert len(trained[0]) > 10 and "goes on" not in caplog.text
    saved(place / "new", autoencoder.new_autoencoder(autoencoder.RECIPES["1.3"]))
    autoencoder.main(asked)
    assert "The run in 'new' goes on where it stood: --encoder counts at its start and is not read." in caplog.text


def test_a_refusal_ends_a_program_in_one_line(place: Path) -> None:
    (place / "partial" / "vae").mkdir(parents=True)
    asked = [sys.executable, "-m", "training", "evaluate", "--models", str(place / "partial")]
    asked += ["--tokenizer", str(place / "t5_tokenizer")]
    ended = subprocess.run(asked, cwd=PACK_ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.startswith("python -m training evaluate: error: There is no '")
