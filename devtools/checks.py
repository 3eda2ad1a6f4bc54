"""``dev.py test``: lint, types and tests, each a step with its own time; the sum says what failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .comfyui import RELEASES, version_of
from .console import say
from .page import make_page
from .places import BROWSER, HOME, REPOSITORY, find_browser
from .runtime import NEEDED_BY_TESTS, Runtime, prepare

DRIVER = "playwright-core"
DRIVER_VERSION = "1.65.1"
TYPES, TYPES_VERSION = "typescript", "5.9.3"
"""What reads the types of the page's part, written as comments in it."""
MAX_WORKERS = 4  # each holds torch and perhaps ComfyUI, about 1.2 GB
ORDINARY = "not gpu and not slow"
TYPED_PARTS = ("devtools", "opensora_models", "nodes")


def run_tests(runtime: Runtime, extra: Sequence[str]) -> int:
    """Everything: 0 when all steps passed."""
    runtime.require(NEEDED_BY_TESTS)
    if install_browser_driver() is not None:
        make_page(runtime.python)
    python = str(runtime.python)
    steps = {
        "lint": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "types": type_check_command(runtime),
        **page_steps(),
        f"tests on ComfyUI {runtime.version}": pytest_command(runtime, ORDINARY, extra),
    }
    return _run_steps({name: (command, runtime.root) for name, command in steps.items()})


def run_compatibility(extra: Sequence[str]) -> int:
    """The older ComfyUI versions: the pack imports there, and every shipped workflow is accepted or left out."""
    steps = {}
    for release in (name for name in RELEASES if name != "0.30"):
        runtime = prepare(None, release)
        name = f"import and workflows on ComfyUI {version_of(runtime.root)}"
        steps[name] = (pytest_command(runtime, f"compat and {ORDINARY}", extra), runtime.root)
    return _run_steps(steps)


def run_translation_tests(runtime: Runtime) -> int:
    """What every language lacks, or has too much; 0 when nothing is."""
    runtime.require(NEEDED_BY_TESTS)
    whole = ["--tb=short", "-o", "verbosity_assertions=2"]  # every difference, not only the first ones
    command = [str(runtime.python), "-m", "pytest", "-q", *whole, "tests/comfy/test_translations.py"]
    return _run_steps({"translations": (command, runtime.root)})


def pytest_command(runtime: Runtime, markers: str, extra: Sequence[str]) -> list[str]:
    """pytest on every core; tests that share a server or an imported ComfyUI stay together (``tests/conftest.py``)."""
    spread = ["-n", str(min(MAX_WORKERS, os.cpu_count() or 1)), "--dist", "load"]
    return [str(runtime.python), "-m", "pytest", "-q", "-m", markers, "--durations=10", *spread, *extra]


def type_check_command(runtime: Runtime) -> list[str]:
    """mypy sees the pack under the name the tests use, whatever the folder of the clone is called."""
    folder = HOME / "types"
    folder.mkdir(parents=True, exist_ok=True)
    from .server import link_folder

    link_folder(REPOSITORY, folder / "opensora")
    parts = [argument for part in TYPED_PARTS for argument in ("-p", f"opensora.{part}")]
    settings = ["--config-file", str(REPOSITORY / "pyproject.toml"), "--cache-dir", str(HOME / "types" / "cache")]
    return [str(runtime.python), "-m", "mypy", *settings, *parts]


def page_steps() -> dict[str, list[str]]:
    """Types and tests of the page's part that need no page; left out, with a word why, where node is missing."""
    node = shutil.which("node")
    if node is None:
        say("The page's part is not checked: that needs node.")
        return {}
    steps = {"the page's part": [node, "--test", "tests/timeline/", "tests/preview/"]}
    package = installed(TYPES, TYPES_VERSION, "The types of the page's part are not checked")
    if package is not None:
        steps["types of the page's part"] = [node, str(package.with_name("bin") / "tsc"), "-p", "js/jsconfig.json"]
    return steps


def install_browser_driver() -> Path | None:
    """Fetch the driver of the browser tests with npm; None (and a word why) where that cannot be."""
    if find_browser() is None:
        say("Browser tests are skipped: they need Chromium (or OPENSORA_BROWSER with its path).")
        return None
    return installed(DRIVER, DRIVER_VERSION, "Browser tests are skipped")


def installed(name: str, version: str, without: str) -> Path | None:
    """The description of an npm package, fetched where it is not there; None where it cannot be, and ``without``."""
    package = BROWSER / "node_modules" / name / "package.json"
    if package.is_file():
        return package
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        say(f"{without}: that needs node and npm.")
        return None
    say(f"Installing {name} {version}")
    BROWSER.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(BROWSER)]
    done = subprocess.run([*command, f"{name}@{version}"], capture_output=True, text=True)
    if done.returncode != 0:
        say(f"{without}, npm failed: {(done.stderr or done.stdout).strip()[-500:]}")
        return None
    return package


def _run_steps(steps: dict[str, tuple[list[str], Path]]) -> int:
    failed, report = [], []
    for name, (command, root) in steps.items():
        say(f"\n== {name}")
        started = time.monotonic()
        code = subprocess.run(command, cwd=REPOSITORY, env=_environment(root)).returncode
        report.append(f"{'ok    ' if code == 0 else 'FAILED'} {time.monotonic() - started:6.1f} s  {name}")
        if code != 0:
            failed.append(name)
    say("\n" + "\n".join(report))
    return 1 if failed else 0


def _environment(root: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["COMFYUI_PATH"] = str(root)
    environment["MYPYPATH"] = str(HOME / "types")
    environment.setdefault("PYTHONUTF8", "1")
    environment.setdefault("OMP_NUM_THREADS", "1")  # the tests already run on every core
    return environment
