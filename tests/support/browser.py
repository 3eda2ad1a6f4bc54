"""A headless browser on the page of the test server. Scenarios are small Node scripts in ``tests/browser/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from opensora.devtools.places import BROWSER, HOME, find_browser
from support.pack import PACK_ROOT
from support.patience import HANGS_SECONDS

SCENARIOS = PACK_ROOT / "tests" / "browser"
ARTEFACTS = HOME / "artefacts"
DRIVER = BROWSER / "node_modules" / "playwright-core"

# The page asks for these and lives without them: an optional style sheet, settings or data nobody saved yet, and the
# models of the workflow it opens by itself on a first visit.
EXPECTED_FAILURES = ("/user.css", "/api/userdata", "/api/settings/", "/userdata/", "/assets/missingModel")


@dataclass(frozen=True)
class Visit:
    """What one scenario gave: its value, errors of the console, failed requests, requests to other hosts."""

    value: Any
    errors: list[str]
    failed: list[str]
    foreign: list[str]


def why_not() -> str | None:
    """Why no browser test can run here; None when it can."""
    if shutil.which("node") is None:
        return "no node"
    if find_browser() is None:
        return "no Chromium (set OPENSORA_BROWSER to the path of one)"
    if not DRIVER.is_dir():
        return "no browser driver: `python dev.py test` installs it where npm is there"
    return None


class Browser:
    """Runs scenarios against one address, each in a fresh page."""

    def __init__(self, url: str) -> None:
        self.url = url
        ARTEFACTS.mkdir(parents=True, exist_ok=True)

    def visit(self, scenario: str, **given: Any) -> Visit:
        """Run ``tests/browser/<scenario>.cjs``; AssertionError where the scenario itself raised."""
        command = ["node", str(SCENARIOS / "run.cjs"), self.url, str(SCENARIOS / f"{scenario}.cjs"), str(ARTEFACTS)]
        # Through standard input: workflows are longer than a command line may be.
        environment = {**os.environ, "OPENSORA_DRIVER": str(DRIVER), "OPENSORA_BROWSER": str(find_browser())}
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, timeout=HANGS_SECONDS, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answer = json.loads(done.stdout)
        assert answer.get("failure") is None, answer["failure"]
        return Visit(
            answer.get("value"),
            [line for line in answer["errors"] if not _expected(line)],
            [line for line in answer["failed"] if not _expected(line)],
            answer["foreign"],
        )


def _expected(line: str) -> bool:
    return any(part in line for part in EXPECTED_FAILURES)
