"""Every command line refuses what cannot be at the door: before anything is prepared, in one line."""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opensora.devtools import commands, option_types, runtime
from opensora.devtools.batch import commands as batch
from opensora.devtools.batch.ledger import FILE, FOLDER
from opensora.devtools.batch.naming import template_of
from opensora.devtools.console import Problem
from support.pack import PACK_ROOT

CHECKED = ("option.", "device_here")  # of devtools.option_types or training.options, and of benchmarks._measure
BY_DEV_ALONE = PACK_ROOT / "demo" / "contact_sheet.py"
"""Is run by itself, without this repository on its path, and only ``dev.py demo`` gives it arguments."""
FILES = sorted(
    path
    for folder in ("benchmarks", "demo", "devtools", "tests", "training")
    for path in (PACK_ROOT / folder).rglob("*.py")
    if "add_argument(" in path.read_text(encoding="utf-8") and path not in (BY_DEV_ALONE, Path(__file__).resolve())
)


def options_of(source: str) -> list[tuple[str, dict[str, str]]]:
    """The names in a file's ``add_argument`` calls, and how what follows them is read."""
    return [
        (ast.literal_eval(node.args[0]), {str(keyword.arg): ast.unparse(keyword.value) for keyword in node.keywords})
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]


def unchecked(source: str) -> list[str]:
    """Options whose value is taken as it comes, or that take no value where they need one."""
    found = []
    for name, given in options_of(source):
        if given.get("action") == "'store_true'":
            continue
        is_checked = "choices" in given or given.get("type", "").startswith(CHECKED)
        if not is_checked or (name.startswith("-") and given.get("nargs") == "'*'"):
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACK_ROOT).as_posix())
def test_every_option_has_a_type_that_checks_it(path: Path) -> None:
    assert unchecked(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("call", "is_found"),
    [
        ('add_argument("--rows", type=int)', True),
        ('add_argument("folder")', True),
        ('add_argument("--rows", type=option.count)', False),
        ('add_argument("--rows", choices=(1, 2), nargs="*")', True),
        ('add_argument("names", type=option.text, nargs="*")', False),
        ('add_argument("--write", action="store_true")', False),
    ],
)
def test_the_rule_sees_what_it_must(call: str, is_found: bool) -> None:
    assert bool(unchecked(f"parser.{call}")) == is_found


def test_options_are_found() -> None:
    folders = {path.relative_to(PACK_ROOT).parts[0] for path in FILES}
    assert folders == {"benchmarks", "devtools", "tests", "training"}
    assert sum(len(options_of(path.read_text(encoding="utf-8"))) for path in FILES) > 100


BAD: list[tuple[Callable[[str], Any], str, str]] = [
    (option_types.text, " ", "nothing was given"),
    (option_types.words, "1.2,,cache", "'1.2,,cache' is not a word, or words with a comma between each two"),
    (option_types.path, "", "nothing was given"),
    (option_types.path, "a" * 300, "'aaa"),
    (option_types.new_folder, "b" * 300, "'bbb"),
    (option_types.path, "~nobody-of-this-name/x", "'~nobody-of-this-name/x' cannot be a path ("),
    (option_types.new_folder, "a.json/b/c", "'a.json' is a file; give a folder"),
    (option_types.file, "none", "there is no file 'none'"),
    (option_types.file, "place", "there is no file 'place'"),
    (option_types.folder, "none", "there is no folder 'none'"),
    (option_types.folder, "", "nothing was given"),
    (option_types.new_folder, "a.json", "'a.json' is a file; give a folder"),
    (option_types.new_file(".json"), "a.txt", "'a.txt' does not end in .json"),
    (option_types.new_file(".json"), "none/a.json", "there is no folder 'none'"),
    (option_types.new_file(".json"), "place.json", "'place.json' is a folder; give a file"),
    (option_types.count, "0", "'0' is not a whole number from 1 to 1000000000"),
    (option_types.count, "²", "'²' is not a whole number from 1 to 1000000000"),
    (option_types.count, "٣", "'٣' is not a whole number from 1 to 1000000000"),
    (option_types.count, "9" * 5000, "'999999999999"),
    (option_types.threads, "99999999999", "'99999999999' is not a whole number from 1 to "),
    (option_types.size, "5x16x" + "9" * 5000, "'5x16x9999"),
    (option_types.amount, "1_000", "'1_000' is not a number from 0 on"),
    (option_types.seconds, "٣", "'٣' is not a number of seconds"),
    (option_types.seed, "4294967296", "'4294967296' is not a whole number from 0 to 4294967295"),
    (option_types.port, "65536", "'65536' is not a whole number from 1 to 65535"),
    (option_types.amount, "nan", "'nan' is not a number from 0 on"),
    (option_types.amount, "-0.1", "'-0.1' is not a number from 0 on"),
    (option_types.seconds, "-1", "'-1' is not a number of seconds from 0 to 10000000"),
    (option_types.seconds, "inf", "'inf' is not a number of seconds from 0 to 10000000"),
    (option_types.above_zero, "0", "'0' is not a number above 0"),
    (option_types.above_zero, "inf", "'inf' is not a number above 0"),
    (option_types.size, "5x16", "'5x16' is not three whole numbers from 1 on with an x between each two"),
    (option_types.size, "5x16x0", "'5x16x0' is not three whole numbers from 1 on with an x between each two"),
    (option_types.size, "5x16x-1", "'5x16x-1' is not three whole numbers from 1 on"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file and two folders."""
    (tmp_path / "a.json").touch()
    (tmp_path / "place").mkdir()
    (tmp_path / "place.json").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("kind", "given", "said"), BAD, ids=lambda part: part[:20] if isinstance(part, str) else "")
def test_what_cannot_be_is_refused(kind: Callable[[str], Any], given: str, said: str, place: Path) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        kind(given)
    assert str(refused.value).startswith(said)


def test_what_can_be_is_taken(place: Path) -> None:
    taken: list[tuple[Callable[[str], Any], str, Any]] = [
        (option_types.text, "a red circle", "a red circle"),
        (option_types.words, "1.2, cache", ["1.2", "cache"]),
        (option_types.as_given, "", ""),
        (option_types.path, "none", Path("none")),
        (option_types.file, "a.json", Path("a.json")),
        (option_types.folder, "place", Path("place")),
        (option_types.new_folder, "to/come", Path("to/come")),
        (option_types.new_file(".json"), "a.json", Path("a.json")),
        (option_types.new_file(".json"), "place/B.JSON", Path("place/B.JSON")),
        (option_types.path, "~/clips", Path.home() / "clips"),
        (option_types.count, "1", 1),
        (option_types.threads, "1", 1),
        (option_types.seed, "0", 0),
        (option_types.port, "8188", 8188),
        (option_types.amount, "0", 0.0),
        (option_types.seconds, "0", 0.0),
        (option_types.seconds, "10000000", 1e7),
        (option_types.above_zero, "0.5", 0.5),
        (option_types.size, "17x64x96", (17, 64, 96)),
    ]  # fmt: skip
    for kind, given, value in taken:
        assert kind(given) == value


def refused_by(main: Callable[[list[str]], int], asked: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line says last, on either stream, when it ends with status 2."""
    try:
        status: Any = main(asked)
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2
    return (err or out).strip()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["serve", "--port", "99999"], "--port: '99999' is not a whole number from 1 to 65535"),
        (["golden", "none"], "there is no folder 'none'"),
        (["translations", "--comfyui", "none"], "that is no ComfyUI folder"),
        (["demo", "--comfyui", "~nobody-of-this-name"], "cannot be a path ("),
        (["demo", "--prompt", ""], "--prompt: nothing was given"),
        (["demo", "--comfyui", ""], "--comfyui: nothing was given"),
        (["test", "--compat", "--comfyui", "."], "--compat makes the older ComfyUI versions and tests on all of them"),
        (["test", "--compat", "--comfyui-version", "0.18"], "--compat makes the older ComfyUI versions"),
        (["test", "-k", "words"], "unrecognized arguments: -k; what is meant for pytest or ComfyUI stands after --"),
        (["demo", "-k"], "unrecognized arguments: -k"),
        (["serve", "--", "--port", "8189"], "write --port before the --"),
        (["serve", "--", "--port=8189"], "write --port before the --"),
    ],
)
def test_dev_prepares_nothing_for_what_cannot_be(
    asked: list[str], said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(*_: Any) -> None:
        raise AssertionError("something was begun")

    for work in ("create_venv", "make_tree"):
        monkeypatch.setattr(runtime, work, begin)
    for work in ("copy_english_pages", "run_compatibility"):
        monkeypatch.setattr(commands, work, begin)
    assert said in refused_by(commands.main, asked, capsys)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--servers", "http://127.0.0.1:9", "--patience", "-5"], "--patience: '-5' is not a number of seconds"),
        (["--servers", "http://127.0.0.1:9", "--patience", "nan"], "--patience: 'nan' is not a number of seconds"),
        (["--servers", "http://127.0.0.1:9", "--row-seconds", "-1"], "--row-seconds: '-1' is not a number of seconds"),
        (["--ray", "--workers", "0"], "--workers: '0' is not a whole number from 1 to 1000000000"),
        (["--ray", "--python", "none"], "--python: there is no file 'none'"),
        (["--ray", "--base", "none"], "--base: there is no folder 'none'"),
    ],
)
def test_batch_refuses_what_no_run_can_have(
    asked: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused_by(batch.main, ["run", "a.json", "a.txt", "--out", "made", *asked], capsys)
    assert not (place / "made").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--servers", "http://127.0.0.1:9", "--cpu"], "--cpu is for --ray"),
        (["--servers", "http://127.0.0.1:9", "--workers", "2"], "--workers is for --ray"),
        (["--servers", "http://127.0.0.1:9", "--comfyui-argument=--fast"], "--comfyui-argument is for --ray"),
        (["--servers", "http://127.0.0.1:9", "--comfyui", "place"], "--comfyui is for --ray"),
        (["--servers", "http://127.0.0.1:9", "--python", "a.json"], "--python is for --ray"),
        (["--servers", "http://127.0.0.1:9", "--base", "place"], "--base is for --ray"),
        (["--ray", "--patience", "5"], "--patience is for --servers"),
    ],
)
def test_batch_leaves_no_option_unread(
    asked: list[str], said: str, monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "_look_first", lambda options: None)
    said_last = refused_by(batch.main, ["run", "a.json", "a.txt", "--out", "made", *asked], capsys)
    assert said in said_last and "Leave it out. Nothing was queued." in said_last.replace("\n", " ")


def test_a_server_under_two_names_is_named_once(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "_look_first", lambda options: None)
    asked = ["run", "a.json", "a.txt", "--out", "made", "--servers", "http://127.0.0.1:9", "http://127.0.0.2:9"]
    for same in ("127.0.0.1:9/", "http://LocalHost:9", "http://[::1]:9"):
        said = refused_by(batch.main, [*asked, same], capsys)
        assert "http://127.0.0.1:9 and http://" in said and "are one server; name it once." in said
    assert "No server answers" in refused_by(batch.main, asked, capsys)


def test_a_broken_ledger_is_told_before_workers_are_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.json").write_text('{"1": {"class_type": "A", "inputs": {}}}', encoding="utf-8")
    (place / "a.txt").write_text("a red circle\n", encoding="utf-8")
    (place / "made" / FOLDER).mkdir(parents=True)
    (place / "made" / FOLDER / FILE).write_text("no ledger" * 200, encoding="utf-8")
    asked = ["run", "a.json", "a.txt", "--out", "made", "--servers", "http://127.0.0.1:9"]
    assert "cannot be used: file is not a database" in refused_by(batch.main, asked, capsys)


def test_the_usage_names_files_before_options_that_would_take_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        batch.main(["run", "--out", "made", "--servers", "http://127.0.0.1:9", "a.json", "a.txt"])
    said = capsys.readouterr().err
    assert (
        "usage: batch.py run WORKFLOW.json TABLE --out DIR (--servers" in said and "are required: WORKFLOW.json" in said
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}", "has a field without a name"),
        ("con/{row}", "has a part between slashes that no file or folder can be called"),
        ("{row}/", "has a part between slashes"),
        ("a/ /{row}", "has a part between slashes"),
        ("{row:0900000000d}", "makes a field 900000000 wide; a name has at most 200 bytes"),
    ],
)
def test_a_template_that_names_no_file_is_refused_before_workers_are_asked(name: str, said: str) -> None:
    with pytest.raises(Problem, match=said):
        template_of(name)


@pytest.mark.parametrize("name", ["{row:05d}", "{prompt:.400}", "{cfg:.2f}-{row}", "a/{row}", "vbench"])
def test_a_template_that_names_files_is_taken(name: str) -> None:
    assert "{" in template_of(name)


@pytest.mark.skipif(os.name == "nt", reason="quotes differ there")
def test_a_command_that_is_recommended_can_be_typed() -> None:
    assert shlex.split(batch._quoted(Path("my clips/it's"))) == ["my clips/it's"]


def test_a_folder_named_twice_is_named_once(place: Path) -> None:
    options = argparse.Namespace(out=Path("one"), named_out=Path("two"))
    with pytest.raises(Problem, match="Two folders were named, 'one' and 'two'; name one."):
        batch._folder(options)
    options.named_out = place / "one"
    assert batch._folder(options) == Path("one")


BENCHMARKS = {
    "cards": (["--frames", "130"], "the nearest good value is 129"),
    "gpu": (["--minutes", "-1"], "--minutes: '-1' is not a number from 0 on"),
    "loading": (["--core", "--dtype", "bf16"], "--dtype: ComfyUI's own loader takes a file as it is stored"),
    "many_clips": (["--rows", "0"], "--rows: '0' is not a whole number from 1 to 1000000000"),
    "mmdit": (["--latents", "5x15x3"], "multiples of 2; the nearest good value is 5x16x4"),
    "parallel": (["--time", "1"], "--time 1: nothing is shared; the nearest good value is 2"),
    "previews": (["--device", "cuda:99"], "--device: there is no device 'cuda:99' here; there is cpu"),
    "stdit3": (["--device", "meta"], "--device: there is no device 'meta' here; there is cpu"),
    "demo_clip": (["--template", "Open-Sora 01 Text to vido"], "near are ['Open-Sora 01 Text to video'"),
    "caches": (["--report", "--out", "none.json"], "--report: 'none.json' has no result of 1.2, 1.3"),
    "vae": (["--version"], "--version: expected at least one argument"),
    "vae_tiles": (["--dtype", "float"], "--dtype: invalid choice: 'float'"),
}
EACH = """
import contextlib, io, json, runpy, sys
from pathlib import Path
folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
said, usual = {}, list(sys.path)
for name, options in asked.items():
    sys.path[:], sys.argv = [str(folder), *usual], [name, *options]
    with contextlib.redirect_stderr(io.StringIO()) as heard:
        try:
            runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
        except SystemExit as ended:
            said[name] = [ended.code, heard.getvalue().splitlines()[-1]]
print(json.dumps(said))
"""


def test_benchmarks_measure_nothing_for_what_cannot_be(place: Path) -> None:
    asked = json.dumps({name: options for name, (options, _) in BENCHMARKS.items()})
    call = [sys.executable, "-c", EACH, str(PACK_ROOT / "benchmarks"), asked]
    ended = subprocess.run(call, capture_output=True, text=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    heard = json.loads(ended.stdout.splitlines()[-1])
    for name, (_, said) in BENCHMARKS.items():
        assert heard[name][0] == 2 and said in heard[name][1], (name, heard[name])
