"""Nothing is said in the log alone: what warns reaches the node that runs, and what does not is listed with its reason.

``native/messages.tell`` says on the node and in the log. A warning of a room that knows no nodes reaches the node too,
by the handler that ``native/core/startup.py`` gives the logger (``tests/comfy/test_told.py``). So only what is logged
below a warning stays in the log, and only in the thread of the node is it known which node runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

BELOW_A_WARNING = {"debug", "info", "log"}
WARNINGS = {"warning", "error", "exception", "critical"}

LOG_ONLY = {
    # Which file became what, with numbers for a report of a bug: nothing of it is lost or changed.
    ("opensora_models/native/model/loading.py", "%s: %s, %s, %s."): "what was loaded, as asked",
    ("opensora_models/native/vae/vae.py", "%s: %s VAE, %s on %s."): "what was loaded, as asked",
    ("opensora_models/native/text/clip.py", "'%s': T5 encoder"): "what was loaded, as asked",
    ("opensora_models/native/text/clip.py", "'%s': %s."): "what was loaded, as asked",
    ("opensora_models/checkpoint/opening.py", "Settings of '%s' read from"): "they are used; those set aside are told",
    ("opensora_models/native/vae/plans.py", "%s %s in %s: about %.1f GB"): "arithmetic; that it does not fit is told",
    # Nothing of this run: conveniences of a later one.
    ("opensora_models/native/model/speed.py", "The speed of this run"): "the next cost has no minutes, which it shows",
    (
        "opensora_models/native/previews/colours.py",
        "The colours of previews are",
    ): "they are fitted anew next time",
    (
        "opensora_models/native/vae/plans.py",
        "If this %s is killed",
    ): "the last bits of a run that may be repeated",
    # A node shows it elsewhere.
    ("opensora_models/sampling/segments.py", "Segment %d was"): "Long Video tells which segments it took, once",
    ("opensora_models/native/vae/decoding.py", "Latents saved to"): "the option is on the node, or the path an output",
    ("opensora_models/native/vae/decoding.py", "Unfinished videos of"): "Stored Work lists and clears them",
    ("opensora_models/native/stored.py", "Removed '%s'"): "Stored Work tells the first and how many more",
    ("opensora_models/native/stored.py", "'%s' (%s) %s."): "Stored Work tells the first and how many more",
    # Said where no node runs, or of how ComfyUI was started.
    ("opensora_models/native/stored.py", "What Open-Sora keeps goes"): "at the start, of a setting the person made",
    ("opensora_models/native/model/clip_layout.py", "--force-channels-last"): "an option of the start, not of a run",
    ("opensora_models/storage/locks.py", "'%s' lies on a file system"): "one ComfyUI works there as anywhere",
    ("opensora_models/storage/locks.py", ""): "the default of `one_writer(tell=)`, for callers without a node",
    (
        "opensora_models/parallel/workers.py",
        "'%s', left by a ComfyUI",
    ): "at the start, of what no run reads again",
    # The one door of all that is told.
    ("opensora_models/native/messages.py", "%s"): "`tell` itself",
}
"""What the log alone may say, by file and the beginning of the sentence, and why."""

THREADS = {
    "opensora_models/storage/beside.py": "its jobs run in a copy of the node's context",
    "opensora_models/native/identity.py": "digests of tensors, which say nothing",
    "opensora_models/parallel/workers.py": "hold the wires to workers; what they note is told by the node that asks",
    "opensora_models/parallel/worker.py": "a process of its own, whose notes are sent",
}
"""Who starts threads, in which nobody knows the running node, and why that loses no sentence."""


def sources() -> list[Path]:
    """The pack's own Python files."""
    folders = [PACK_ROOT / "opensora_models", PACK_ROOT / "nodes"]
    return [PACK_ROOT / "__init__.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def named(path: Path) -> str:
    return path.relative_to(PACK_ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def text_of(call: ast.Call) -> str:
    """The sentence of a log line, its ``%`` places as they stand; "" where it is not written there."""
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
        if isinstance(argument, ast.JoinedStr):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in argument.values)
    return ""


def quiet_lines(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and sentence of everything that is logged below a warning, the bare method handed on included."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in BELOW_A_WARNING and is_logger(node.value):
            yield node.lineno, text_of(called[id(node)]) if id(node) in called else ""


def is_logger(node: ast.expr) -> bool:
    """Whether an expression looks like a logger: by its name, or made on the spot."""
    made = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
    return made or bool(re.search(r"(^|[._])(logger|logging|log)$", ast.unparse(node)))


@pytest.mark.parametrize("path", sources(), ids=named)
def test_what_only_the_log_says_is_listed_with_its_reason(path: Path) -> None:
    for line, sentence in quiet_lines(tree_of(path)):
        starts = [start for file, start in LOG_ONLY if file == named(path)]
        assert any(sentence.startswith(start) if start else not sentence for start in starts), (
            f"{named(path)}:{line} says '{sentence}' in the log alone: tell it with native/messages.tell, make it a "
            "warning, which reaches the node, or list here why nobody needs it"
        )


def test_the_list_holds_nothing_that_is_gone() -> None:
    for file, start in LOG_ONLY:
        said = [sentence for _, sentence in quiet_lines(tree_of(PACK_ROOT / file))]
        assert any(sentence.startswith(start) if start else not sentence for sentence in said), (file, start)


@pytest.mark.parametrize("path", sources(), ids=named)
def test_there_is_one_logger_and_it_has_one_name(path: Path) -> None:
    """Whoever logs by another name, or past the logger, would reach no node."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
            assert [ast.unparse(argument) for argument in node.args] == ["'opensora'"], named(path)
        if isinstance(node, ast.Attribute) and node.attr in BELOW_A_WARNING | WARNINGS:
            assert ast.unparse(node.value) != "logging", f"{named(path)}:{node.lineno} logs past the pack's logger"
        if (
            isinstance(node, (ast.Assign, ast.AnnAssign))
            and node.value is not None
            and "getLogger(" in ast.unparse(node.value)
        ):
            (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
            assert ast.unparse(target) == "logger", f"{named(path)}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "logging":
            assert {alias.name for alias in node.names} <= {"Handler", "LogRecord"}, named(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
            raise AssertionError(f"{named(path)}:{node.lineno} warns where no node hears of it")


@pytest.mark.parametrize("path", sources(), ids=named)
def test_who_starts_threads_is_listed_with_its_reason(path: Path) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    starts = {name.rpartition(".")[2] for name in called} & {"Thread", "ThreadPoolExecutor", "Timer"}
    assert bool(starts) == (named(path) in THREADS)


@pytest.mark.parametrize(
    "line",
    [
        'logger.info("The file is left out.")', 'logger.log(20, "The file is left out.")', "say = logger.info",
        'logging.getLogger("opensora").info("The file is left out.")', 'self.logger.debug(f"{a} is left out.")',
    ],
)  # fmt: skip
def test_the_sweep_sees_what_slips_past(line: str) -> None:
    assert len(list(quiet_lines(ast.parse(line)))) == 1
