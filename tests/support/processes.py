"""Further processes with the pack loaded, for tests of what two of them do to each other."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from support.pack import load_pack
load_pack()
import torch
torch.set_num_threads(1)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs ``code``; arguments are ``sys.argv[1:]`` there."""
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(tests), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """What a process printed; it must end well."""
    printed, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors[-3000:]
    return printed
