"""What is asked for the picture of the tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

from support.pack import PACK_ROOT
from support.shipped import DEMO, SHIPPED

PROGRAM = "import json; from demo.tiny_picture import rows; print(json.dumps(rows()))"


def test_every_release_gets_its_own_files_and_the_same_words() -> None:
    printed = subprocess.run([sys.executable, "-c", PROGRAM], cwd=PACK_ROOT, capture_output=True, text=True, check=True)
    asked = json.loads(printed.stdout)
    shipped = {path.name for path in DEMO.rglob("*.safetensors")}
    for row in asked:
        assert set(row) == set(SHIPPED)
        words = set()
        for release, graph in row.items():
            values = [value for node in graph.values() for value in node["inputs"].values()]
            files = {value for value in values if isinstance(value, str) and value.endswith(".safetensors")}
            assert files <= shipped and len([name for name in files if f"v{release}" in name]) == 2, files
            assert not [name for name in files if "-v" in name and f"-v{release}" not in name], files
            assert {node["inputs"]["version"] for node in graph.values() if "version" in node["inputs"]} == {release}
            words |= {value for value in values if isinstance(value, str) and " background" in value}
        assert len(words) == 1, words
    assert len(asked) == 5
