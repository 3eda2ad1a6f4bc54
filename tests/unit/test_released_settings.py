"""Settings that are not the release's own are said: untouched ones of another release, another release's preset."""

from __future__ import annotations

import re

import pytest

from opensora.opensora_models.releases.guidance import PRESETS
from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.releases.release import Release
from opensora.opensora_models.sampling.released_settings import (
    GUIDER_STARTS,
    RUN_STARTS,
    STEPS_START,
    anothers_preset,
    untouched,
)

every_release = pytest.mark.parametrize("release", RELEASES.values(), ids=list(RELEASES))
USES = ("text", "picture", "clip")


def test_untouched_settings_of_2_0_are_one_sentence_with_its_numbers() -> None:
    said = untouched(RELEASES["2.0"], "text", RUN_STARTS, RUN_STARTS)
    assert said == (
        "Open-Sora 2.0 was released with steps 50, cfg 7.5 and image_cfg 3; steps 30, cfg 7 and image_cfg 5, as the "
        "node starts, are kept."
    )
    steps = untouched(RELEASES["2.0"], "text", STEPS_START, STEPS_START)
    assert steps == "Open-Sora 2.0 was released with steps 50; steps 30, as the node starts, is kept."


@every_release
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("starts", [RUN_STARTS, GUIDER_STARTS, STEPS_START])
def test_said_are_exactly_the_numbers_that_differ_and_only_when_nothing_was_touched(
    release: Release, use: str, starts: dict[str, float]
) -> None:
    preset = release.guidance.presets[use]
    own = {"steps": release.times.steps, "cfg": preset.text_scale, "image_cfg": preset.image_scale}
    wanted = {name: own[name] for name, start in starts.items() if own[name] is not None and own[name] != start}
    released, _, _ = untouched(release, use, starts, starts).partition(";")
    assert {name: float(value) for name, value in re.findall(r"(\w+) (\d[\d.]*)(?=,| and|$)", released)} == wanted
    for name in starts:
        assert untouched(release, use, {**starts, name: starts[name] + 1}, starts) == ""
    assert untouched(release, use, {**starts, **{name: own[name] for name in wanted}}, starts) == ""


@every_release
def test_a_preset_of_another_release_is_said_and_one_of_its_own_is_not(release: Release) -> None:
    own = release.guidance.presets.values()
    for name, preset in PRESETS.items():
        said = anothers_preset(release, name)
        if preset in own:
            assert said == ""
        else:
            assert name in said and release.title in said and "automatic" in said
            named = said.partition("was released with ")[2].partition(", which")[0].split(" or ")
            assert named and all(PRESETS[each] in own for each in named)
    assert anothers_preset(release, "automatic") == ""
