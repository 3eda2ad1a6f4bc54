"""What reaches a node by wire is held against its schema, and what a node says can be printed: for every node."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.comfyui import comfyui_root, use_comfyui
from support.good_inputs import GoodInputs

if TYPE_CHECKING:
    from support.comfyui import Executor

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES, door  # noqa: E402 (needs ComfyUI in the process)
from opensora.nodes.files import SavingNode  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]
every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.define_schema().node_id)

NUMBERS = [-1, 0, 10**6, 2**40, -(2**70), 0.5, math.nan, math.inf, -math.inf, "7", None, True, [1], torch.ones(2)]
NOT_LATENTS = [
    {},
    {"samples": 3},
    {"samples": None},
    *({"samples": torch.zeros(shape)} for shape in ((2,), (1, 4, 0, 8))),
]
GROWING = "COMFY_AUTOGROW_V3"
NOT_WIRES = [5, 0.5, "x", [], [5], (1, 2), [[1, 2]], torch.tensor(1.0), torch.full((3,), math.nan), object()]
HALF_CHARACTERS = ["\ud800", "|0|a|\ud800|b", "x\udcffy", "a" * 400 + "\udfff"]
NEAREST = re.compile(r"nearest good value is (\S.*?)\.?$")


@pytest.fixture(scope="module")
def good(executor: Executor) -> GoodInputs:
    return GoodInputs(executor)


def inputs(node: Any, *kinds: str) -> Iterator[Any]:
    """The inputs of a node that have one of ComfyUI's types."""
    return (entry for entry in node.define_schema().inputs if entry.get_io_type() in kinds)


def refusal(node: Any, values: dict[str, Any]) -> str | None:
    """The sentence a node refuses values with; None where it runs. Any other error fails the test."""
    try:
        node.execute(**values)
    except ValueError as error:
        "".join(traceback.format_exception(error)).encode()  # what ComfyUI's log writer does
        return str(error)
    return None


@every_node
def test_it_stands_behind_the_door(node: Any) -> None:
    assert issubclass(node, door.OpenSoraNode)
    assert hasattr(node.execute.__func__, door.GUARDED)
    if "validate_inputs" in node.__dict__:
        assert hasattr(node.validate_inputs.__func__, door.GUARDED)


@every_node
def test_good_values_pass(node: Any, good: GoodInputs) -> None:
    values = {name: value for name, value in good.for_node(node).items() if value is not None}  # no file saved yet
    door.check_inputs(node, values)


@every_node
def test_linked_numbers_keep_the_limits_of_the_widget(node: Any, good: GoodInputs) -> None:
    for entry in inputs(node, "INT", "FLOAT"):
        for number in NUMBERS:
            values = {**good.for_node(node), entry.id: number}
            allowed = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
            allowed = allowed and entry.min <= number <= entry.max
            if allowed and (entry.get_io_type() == "FLOAT" or number == int(number)):
                continue
            said = refusal(node, values)
            assert said is not None and entry.id in said, (entry.id, number, said)
            suggested = NEAREST.search(said)
            plain = not isinstance(number, (int, float)) or isinstance(number, bool)
            assert suggested or plain or entry.id in node.depends, said
            if suggested:
                door.check_inputs(node, {entry.id: float(suggested[1]) if "." in suggested[1] else int(suggested[1])})


@every_node
def test_linked_choices_are_held_against_the_list(node: Any, good: GoodInputs) -> None:
    for entry in inputs(node, "COMBO"):
        for value in ("no such choice", 3, None, ["a"], "\ud800"):
            said = refusal(node, {**good.for_node(node), entry.id: value})
            assert said and len(said) < 600, (entry.id, value)
            if not door._names_a_file(entry) and (suggested := NEAREST.search(said)):
                assert suggested[1] in entry.options


@every_node
def test_what_is_no_wire_is_told_in_one_sentence(node: Any, good: GoodInputs) -> None:
    known = ("MODEL", "CLIP", "VAE", "LATENT", "CONDITIONING", "IMAGE", "SIGMAS", "OSORA_REFERENCES")
    for entry in node.define_schema().inputs:
        if entry.get_io_type() == GROWING:
            assert entry.template.input.get_io_type() in known
            for value in (*NOT_WIRES, *NOT_LATENTS):
                name = f"{entry.template.prefix}0"
                said = refusal(node, {**good.for_node(node), entry.id: {name: value}})
                assert said is not None and name in said and "connect" in said, (entry.id, value, said)
            continue
        if entry.get_io_type() == "CURVE":  # drawn on the node, written, or by wire
            for value in (3, True, [1], {"points": 3}, "0:x", [[0, 2]], object()):
                said = refusal(node, {**good.for_node(node), entry.id: value})
                assert said is not None and said.startswith(f"The input {entry.id} is no curve: "), (value, said)
            continue
        if entry.get_io_type() not in known:
            assert entry.get_io_type() in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"), "teach native/wires.py"
            continue
        for value in (*NOT_WIRES, *NOT_LATENTS):
            said = refusal(node, {**good.for_node(node), entry.id: value})
            assert said is not None and entry.id in said and "connect" in said, (entry.id, value, said)


@every_node
def test_text_that_cannot_be_printed_never_leaves_a_node(node: Any, good: GoodInputs) -> None:
    for entry in inputs(node, "STRING", "COMBO"):
        for text in HALF_CHARACTERS:
            said = refusal(node, {**good.for_node(node), entry.id: text})
            assert said, (entry.id, text)
            if node.__dict__.get("validate_inputs") and entry.id in node.validate_inputs.__signature__.parameters:
                answer = node.validate_inputs(**{entry.id: text})
                assert isinstance(answer, str) and answer.encode()


def test_an_error_that_quotes_half_a_character_is_said_anew() -> None:
    with pytest.raises(ValueError) as caught, door.readable_errors():
        try:
            raise KeyError("\ud800")
        except KeyError as inner:
            raise RuntimeError("the file x\udcff") from inner
    assert "".join(traceback.format_exception(caught.value)).encode()
    assert "\\udcff" in str(caught.value)


def test_a_method_of_another_kind_of_error_stays_what_it_is() -> None:
    with pytest.raises(KeyError), door.readable_errors():
        raise KeyError("plain")


@every_node
def test_what_costs_waits_until_the_rest_was_found_right(node: Any) -> None:
    """Prompts, and clips about to be saved, are made only for a node that has nothing to object to its other inputs."""
    costly = {"CONDITIONING", "LATENT"} if issubclass(node, SavingNode) else {"CONDITIONING"}
    if node.define_schema().node_id == "OSoraNullText":  # all it does is look at the prompt
        return
    assert [entry.id for entry in inputs(node, *costly, "CLIP") if not entry.lazy] == []


def test_a_vae_of_another_kind_and_a_prefix_by_wire_are_refused_before_sampling(good: GoodInputs) -> None:
    for node in NODES:
        if not issubclass(node, SavingNode):
            continue
        values = {entry.id: None if entry.lazy else good.of(entry) for entry in node.define_schema().inputs}
        assert node.check_lazy_status(**values)
        with pytest.raises(ValueError, match="prefix"):
            node.check_lazy_status(**{**values, "filename_prefix": "../outside"})
        if "vae" in values:
            with pytest.raises(ValueError, match="Open-Sora Load VAE"):
                node.check_lazy_status(**{**values, "vae": OtherVAE()})


class OtherVAE:
    """Another model's VAE."""

    def encode(self, pixels: Any) -> Any:
        return pixels

    decode = encode


def test_lazy_inputs_are_asked_for_only_after_the_others_passed(good: GoodInputs) -> None:
    sampler = next(node for node in NODES if node.define_schema().node_id == "OSoraSampler")
    values = {**good.for_node(sampler), "positive": None, "negative": None}
    assert sampler.check_lazy_status(**values) == ["positive", "negative"]
    with pytest.raises(ValueError, match="steps"):
        sampler.check_lazy_status(**{**values, "steps": 0})
    with pytest.raises(ValueError, match="16 channels"):
        sampler.check_lazy_status(**{**values, "latent": {"samples": torch.ones(1, 16, 5, 8, 8)}})
    assert sampler.check_lazy_status(**good.for_node(sampler)) == []
