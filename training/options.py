"""What the command lines of training are given, checked before anything is loaded: the types of their options."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..devtools.option_types import amount, count, file, new_file, new_folder, seed
from ..devtools.option_types import path as any_path
from ..opensora_models.releases.known import release_named
from .flow_recipes import FlowConfig
from .progress import CHECKPOINT_NAME, log

Value = TypeVar("Value")

SHIPPED = Path("demo/models")
EXPORTED = ("diffusion_models", "text_encoders", "vae")
"""Folders of which a models folder has at least one."""

sheet = new_file(".png")

__all__ = [
    "amount", "check_frames", "check_phase", "check_use", "clip_tokenizer", "count", "file", "given_as", "models",
    "new_folder", "run", "say_what_comes_late", "seed", "sheet", "tokenizer",
]  # fmt: skip


def models(text: str) -> Path:
    """A folder with exported models."""
    path = any_path(text)
    if not any((path / name).is_dir() for name in EXPORTED):
        raise ArgumentTypeError(f"'{text}' is no models folder: it has none of {', '.join(EXPORTED)}")
    return path


def run(text: str) -> Path:
    """The folder of a training run that has saved something."""
    path = any_path(text)
    if not (path / CHECKPOINT_NAME).is_file():
        raise ArgumentTypeError(f"there is no training run in '{text}': it has no {CHECKPOINT_NAME}")
    return path


def tokenizer(text: str) -> Path:
    """A folder with a tokenizer of T5."""
    path = any_path(text)
    if not (path / "tokenizer.json").is_file():
        raise ArgumentTypeError(f"there is no tokenizer.json in '{text}'; give ComfyUI's t5_tokenizer folder")
    return path


def clip_tokenizer(text: str) -> Path:
    """A folder with a tokenizer of CLIP."""
    path = any_path(text)
    if not (path / "vocab.json").is_file():
        raise ArgumentTypeError(f"there is no vocab.json in '{text}'; give ComfyUI's sd1_tokenizer folder")
    return path


def given_as(read: Callable[[Path], Value]) -> Callable[[str], Value]:
    """What ``read``, which raises ValueError, makes of a file."""

    def value(text: str) -> Value:
        try:
            return read(file(text))
        except UnicodeDecodeError:
            raise ArgumentTypeError(f"'{text}' is no text in UTF-8") from None
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return value


def check_phase(parser: ArgumentParser, options: Namespace, recipe: FlowConfig) -> None:
    """Ends the program where ``--phase`` is none of the run's."""
    if options.phase is None:
        return
    phases = len(recipe.phases)
    if options.flow is None:
        parser.error("--phase is one of a training run, which --flow names")
    if options.phase > phases:
        parser.error(f"argument --phase: {options.phase} is none of the recipe's; its last is {phases}")
    if not (options.flow / f"phase-{options.phase}.pt").is_file():
        parser.error(f"argument --phase: '{options.flow}' has not come to the end of phase {options.phase}")


def check_use(parser: ArgumentParser, options: Namespace, name: str, is_read: bool, why: str) -> None:
    """Ends the program where an option was given that nothing reads, and says ``why`` it is not."""
    if getattr(options, name) is not None and not is_read:
        parser.error(f"--{name} has no use here: {why}")


def check_frames(parser: ArgumentParser, frames: int, release: str) -> None:
    """Ends the program where clips of a release never have so many frames."""
    try:
        release_named(release).latents.lengths.check(frames, "--frames")
    except ValueError as error:
        parser.error(str(error))


def say_what_comes_late(name: str, folder: Path) -> None:
    """Logs that an option counts at the start of a run alone, where ``folder`` holds one that goes on."""
    if (folder / CHECKPOINT_NAME).is_file():
        log.warning("The run in '%s' goes on where it stood: %s counts at its start and is not read.", folder, name)
