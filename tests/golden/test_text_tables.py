"""Tables of prompts beyond the recorded ones: other names, other columns, null, and what the original gives up at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden import families
from golden.runner import run_file
from support.comfyui import comfyui_root

families.register_all()

SETTINGS = [
    {"in": 'a{"mask_strategy": null}', "out": [["a"], [""], [None]]},
    {"in": 'a{"mask_strategy": 0}', "out": [["a"], [""], [0]]},
    {"in": 'a{"reference_path": "x"}', "out": [["a"], ["x"], [""]]},
    {"in": "a{}", "out": [["a"], [""], [""]]},
    {"in": "a {b}", "raises": "JSONDecodeError"},
    {"in": 'a {b} {"mask_strategy": "0"}', "raises": "AssertionError"},
]
TABLES: dict[str, Any] = {
    "utils": {"v1.2": {"extract_json_from_prompts": SETTINGS}},
    "utils_more": {
        "v1.3": {
            "split_prompt": [{"in": "|0|a|0|b", "out": [["a", "b"], [0, 0]]}],
            "append_score_to_prompts": [
                {"in": [["x"], "fantastic", None, None], "out": ["x The aesthetic score is fantastic."]}
            ],
        },
        "v1.2": {"append_score_to_prompts": [{"in": [["x"], "7", None, None], "raises": "ValueError"}]},
    },
    "clean_caption_more": {"cases": [{"input": "<b>A</b>", "output": "a"}]},
    "tokenize_more": {"raw": [{"text": "a</s>b", "ids": [3, 9, 1, 115, 1]}]},
}


@pytest.mark.parametrize("name", TABLES)
def test_any_table_of_prompts_is_read(tmp_path: Path, name: str) -> None:
    if name.startswith("tokenize") and comfyui_root() is None:
        pytest.skip("no ComfyUI, whose tokenizer this needs")
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(TABLES[name]), encoding="utf-8")
    results = list(run_file(path))
    assert results and all(result.passed for result in results), results


def test_a_wrong_setting_fails(tmp_path: Path) -> None:
    path = tmp_path / "utils.json"
    path.write_text(json.dumps({"v1.2": {"extract_json_from_prompts": [{**SETTINGS[2], "out": SETTINGS[1]["out"]}]}}))
    (result,) = run_file(path)
    assert not result.passed
