"""A full-width file is read once, into the memory that keeps it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

MOST = 1.15
WAYS = (("--stored", "bf16"), ("--stored", "fp8"), ("--dtype", "fp8_e4m3fn"))


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_loading_takes_little_more_than_the_file(comfy: Path, version: str, way: tuple[str, str]) -> None:
    """Private memory; mapped pages, which the system takes back, are told apart and few as well."""
    script = [sys.executable, PACK_ROOT / "benchmarks" / "loading.py", "--version", version, *way]
    said = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"([\d.]+) x file at the peak.*mapped pages ([\d.]+) x file", said)
    assert found, said
    peak, mapped = map(float, found.groups())
    assert peak <= MOST and mapped <= MOST - 1, said
