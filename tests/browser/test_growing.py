"""Inputs that grow keep their wires, whatever the page makes of their node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def grows(info: dict[str, Any]) -> list[str]:
    """The inputs of a node that grow."""
    return [name for inputs in info["input"].values() for name, (kind, *_) in inputs.items() if kind == GROWS]


GROWS = "COMFY_AUTOGROW_V3"


def test_grown_inputs_keep_their_wires(
    each_page: Page, object_info: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    found = each_page.browser.visit("growing", vue=request.node.callspec.params["each_page"] == "newest page")
    ours = {name: grows(info) for name, info in object_info.items() if name.startswith("OSora")}
    assert {(each["type"], each["group"]) for each in found.value["nodes"]} == {
        (name, group) for name, groups in ours.items() for group in groups
    }
    for node, seen in found.value["seen"].items():
        wires = {name: f"source {at}" for at, name in enumerate(seen.pop("grown")[:-1])}
        assert len(wires) == 3, node
        times = {"copied": 2}
        for moment, each in seen.items():
            assert each == [wires] * times.get(moment, 1), f"{node}, {moment}"
    assert found.errors == []
