"""Devices as a person writes them: who computes, and a nearest good value that is one."""

from __future__ import annotations

import re
from itertools import product

import pytest

from opensora.opensora_models.parallel.devices import cluster_devices, shared_devices, written


@pytest.mark.parametrize(
    ("text", "own", "gpus", "wanted"),
    [
        ("all", "0", 3, ("0", "1", "2")),
        (" ALL ", "1", 3, ("1", "0", "2")),
        ("all", "0", 1, ("0",)),
        ("all", "cpu", 0, ("cpu",)),
        ("0, 2", "2", 3, ("2", "0")),
        ("0,1,02", "0", 3, ("0", "1", "2")),
        ("cpu x 3", "cpu", 0, ("cpu", "cpu", "cpu")),
        ("CPU×2", "cpu", 0, ("cpu", "cpu")),
        ("cpu", "cpu", 0, ("cpu",)),
    ],
)
def test_who_computes(text: str, own: str, gpus: int, wanted: tuple[str, ...]) -> None:
    assert shared_devices(text, own, gpus) == wanted
    assert sorted(shared_devices(written(wanted), own, gpus)) == sorted(wanted)


TEXTS = (
    *(
        "",
        "none",
        "0, ,",
        "0;1",
        "gpu 1",
        "-1",
        "1",
        "7",
        "0,7",
        "1,2",
        "0,0",
        "1,1",
        "0,1,1,9",
        "99999999",
        "9" * 30,
        "0,",
    ),
    *("cpu x 0", "cpu x 9", "cpu x 99999999", "cpu x -2", "cpu x two", "0, cpu", "\n", "'", "x" * 500),
)


@pytest.mark.parametrize(("own", "gpus"), [("cpu", 0), ("0", 1), ("0", 2), ("3", 4)])
def test_what_is_refused_names_a_value_that_is_not(own: str, gpus: int) -> None:
    refused = 0
    for text in TEXTS:
        try:
            shared_devices(text, own, gpus)
        except ValueError as error:
            sentence = str(error)
            best = re.fullmatch(r"The input devices is '.*', but .+; the nearest good value is (.+)\.", sentence)
            assert best is not None and len(sentence) < 300, sentence
            assert shared_devices(best[1], own, gpus)[0] == own
            refused += 1
    assert refused > len(TEXTS) - 4


def test_a_list_without_comfyuis_own_device_is_completed() -> None:
    for text, best in (("1", "0 1"), ("2,1", "0 1 2"), ("1 5", "0 1"), ("0,0,2", "0 2")):
        with pytest.raises(ValueError, match=f"value is {best}.$"):
            shared_devices(text, "0", 3)


def test_gpus_of_a_cluster_have_no_numbers() -> None:
    assert cluster_devices("All", "0", 3) == ("0", "gpu", "gpu", "gpu") and cluster_devices("all", "1", 0) == ("1",)
    assert cluster_devices("cpu x 3", "cpu", 8) == ("cpu",) * 3
    for own, text in product(("0", "cpu"), TEXTS):
        try:
            cluster_devices(text, own, 2)
        except ValueError as error:
            cluster_devices(str(error).rpartition("nearest good value is ")[2].rstrip("."), own, 2)


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_gpus_of_a_cluster_help_no_comfyui_on_the_cpu(gpus: int) -> None:
    """Whose rank 0 the others could not talk to."""
    rule = "is for a ComfyUI that computes on a GPU where address names a cluster, and this one does on the CPU"
    with pytest.raises(
        ValueError, match=f"^The input devices is 'all', but {rule}; the nearest good value is cpu x 2.$"
    ):
        cluster_devices("all", "cpu", gpus)


def test_every_set_of_gpus_with_ones_own_is_taken() -> None:
    for flags in product((0, 1), repeat=4):
        numbers = [str(number) for number in range(4) if flags[number]]
        if "2" in numbers:
            assert sorted(shared_devices(",".join(numbers), "2", 4)) == numbers
