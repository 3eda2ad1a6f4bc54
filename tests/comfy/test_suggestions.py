"""Every refusal that names a value is fed that value, and passes: swept over all nodes that suggest one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.comfyui import comfyui_root, use_comfyui
from support.good_inputs import GoodInputs
from support.pack import PACK_ROOT

if TYPE_CHECKING:
    from support.comfyui import Executor

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES  # noqa: E402 (needs ComfyUI in the process)
from opensora.opensora_models.caching import guidance_rows, tables  # noqa: E402
from opensora.opensora_models.checkpoint import settings  # noqa: E402
from opensora.opensora_models.mmdit import tokens  # noqa: E402
from opensora.opensora_models.native.sampling import timeline_inputs  # noqa: E402
from opensora.opensora_models.native.sampling.clips import ClipSize  # noqa: E402
from opensora.opensora_models.native.sampling.reference_inputs import ReferenceChain  # noqa: E402
from opensora.opensora_models.parallel import devices  # noqa: E402
from opensora.opensora_models.releases import groups as frames  # noqa: E402
from opensora.opensora_models.releases import known as releases  # noqa: E402
from opensora.opensora_models.releases import printed_sizes as sizes  # noqa: E402
from opensora.opensora_models.releases import sizes as release_sizes  # noqa: E402
from opensora.opensora_models.sampling import (  # noqa: E402
    factor_curve,
    guidance,
    masks,
    references,
    schedule,
    segments,
    strength_over_clip,
    timeline,
)
from opensora.opensora_models.storage import output_names  # noqa: E402
from opensora.opensora_models.text import suffixes, wording  # noqa: E402
from opensora.opensora_models.vae import file_settings, guards, statistics, tiled, tiled_files  # noqa: E402

pytestmark = [pytest.mark.comfy]

SUGGESTION = re.compile(r"nearest good (?:value|size) is '?(.+?)'?(?:\.?$|[,;]| \(-1| pixels)")
"""The value a sentence ends with, or what comes before an explanation of it."""
NODE = {node.define_schema().node_id: node for node in NODES}


def attempt(work: Callable[[], Any]) -> str | None:
    """The sentence of a refusal; None where it passes."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


def follows(refuse: Callable[[Any], Any], value: Any, read: Callable[[str], Any] = int) -> bool:
    """Try ``value``; where it is refused with a suggestion, the suggestion must pass. True if one was followed."""
    said = attempt(lambda: refuse(value))
    if said is None or "nearest" not in said:
        return False
    found = SUGGESTION.search(said)
    assert found, said
    again = attempt(lambda: refuse(read(found[1])))
    assert again is None, f"{said}\nbut {found[1]} is refused too: {again}"
    return True


def whole_numbers(seed: int, count: int = 60) -> Iterator[int]:
    random = Random(seed)
    yield from range(-3, 60)
    yield from (random.choice((-1, 1)) * random.randrange(10 ** random.randrange(1, 7)) for _ in range(count))


@pytest.mark.parametrize("version", releases.RELEASES)
def test_lengths_of_clips(version: str) -> None:
    empty, size = NODE["OSoraEmptyLatent"], NODE["OSoraSize"]
    lowest = releases.RELEASES[version].sizes.resolutions[0]
    followed = [
        follows(lambda n: empty.execute(version=version, height=64, width=64, frames=n, batch_size=1), number)
        for number in whole_numbers(1)
    ]
    assert sum(followed) > 50
    for number in whole_numbers(2):
        follows(
            lambda n: size.execute(
                version=version,
                resolution=lowest,
                aspect_ratio="3:4 (wide)",
                length="custom",
                custom_frames=n,
            ),
            number,
        )


@pytest.mark.parametrize("version", releases.RELEASES)
def test_sizes_of_clips(version: str) -> None:
    release = releases.RELEASES[version]

    def refuse(size: tuple[int, int]) -> None:
        NODE["OSoraEmptyLatent"].execute(version=version, height=size[0], width=size[1], frames=1, batch_size=1)

    random = Random(3)
    for _ in range(80):
        height, width = random.randrange(16, 5761), random.randrange(16, 5761)
        follows(refuse, (height, width), lambda text: tuple(map(int, text.split("×"))))
    for size in ((9000, 5), (16, 99999), (1, 1), (0, -5)):
        follows(
            lambda each: release_sizes.check_size(release.sizes, release.title, *each), size,
            lambda text: tuple(map(int, text.split("×"))),
        )  # fmt: skip


@pytest.mark.parametrize("version", [*releases.RELEASES, releases.IMAGE_STAGE])
def test_shapes_of_resolution_classes(version: str) -> None:
    schema = {entry.id: entry for entry in NODE["OSoraSize"].define_schema().inputs}

    def refuse(shape: tuple[str, str]) -> None:
        values = {"version": version, "length": "image", "custom_frames": 1}
        NODE["OSoraSize"].execute(**values, resolution=shape[0], aspect_ratio=shape[1])

    followed = 0
    for resolution in schema["resolution"].options:
        for ratio in (*schema["aspect_ratio"].options, *schema["aspect_ratio"].also):
            said = attempt(lambda: refuse((resolution, ratio))) or ""  # noqa: B023 (called at once)
            both = re.search(r"value is (\S+), with aspect_ratio (.+)\.$", said)
            fixed = "input aspect_ratio" in said
            read = lambda text: both.groups() if both else (resolution, text) if fixed else (text, ratio)  # noqa: B023, E731
            followed += follows(refuse, (resolution, ratio), read)
    assert followed > 10
    assert follows(lambda ratio: sizes.image_size("256", ratio), "0.31234", str)


def reference_values(good: GoodInputs, version: str, length: int = 15, **changed: Any) -> dict[str, Any]:
    """Good values of the Reference node for a clip of ``length`` latent frames of a release."""
    latents = releases.RELEASES[version].latents
    values = {**good.for_node(NODE["OSoraReference"]), "second_image": None, "latent": None, "references": None}
    return {
        **values,
        "clip_latent": {"samples": torch.zeros(1, latents.channels, length, 2, 2), "opensora_release": version},
        "vae": Encoder(version),
        **changed,
    }


class Encoder:
    """Takes the place of a VAE: right lengths, no work."""

    def __init__(self, version: str) -> None:
        self.latents = releases.RELEASES[version].latents

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, self.latents.channels, *self.latents.cells(*pictures.shape[:3]))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


@pytest.mark.parametrize("version", releases.RELEASES)
@pytest.mark.parametrize("available", [1, 5, 17, 30, 33, 34, 51])
@pytest.mark.parametrize("length", [5, 15])
def test_frames_of_a_reference(good: GoodInputs, version: str, available: int, length: int) -> None:
    """By the node and by the run that the references are for."""
    clip = torch.zeros(available, 16, 16, 3)
    for placement in ("at position", "edit whole clip", "extend forwards", "extend backwards", "connect two clips"):
        values = reference_values(good, version, length, image=clip, second_image=clip, placement=placement)
        for number in whole_numbers(4, count=10):
            follows(lambda n: laid(version, {**values, "frames": n}), number)  # noqa: B023 (called at once)


def laid(version: str, values: dict[str, Any]) -> references.Placed:
    """What the references of a node become in the clip."""
    chain = NODE["OSoraReference"].execute(**values).args[0]
    return references.lay_out(
        chain.references, values["clip_latent"]["samples"][0], release=releases.RELEASES[version]
    )  # fmt: skip


@pytest.mark.parametrize("version", ["2.0", "2.0 high compression"])
def test_references_that_leave_nothing_to_make(good: GoodInputs, version: str) -> None:
    """A clip that fills what is to be made, clips too short for references, and strengths where there are none."""
    take, followed = releases.RELEASES[version].given.takes[1], 0
    for length in (2, 3, 5, 8, 9, 16, 17, 30):
        for placement in ("extend forwards", "extend backwards", "connect two clips"):
            pictures = torch.zeros(take + 3, 16, 16, 3)
            values = reference_values(good, version, length, image=pictures, second_image=pictures, placement=placement)
            followed += follows(lambda n: NODE["OSoraReference"].execute(**{**values, "frames": n}), take)  # noqa: B023
    assert followed > 12
    rules = releases.RELEASES[version].latents.lengths
    assert follows(
        lambda n: NODE["OSoraReference"].execute(
            **reference_values(good, version, rules.counting.latents(n), image=torch.zeros(1, 16, 16, 3))
        ), 1, lambda text: int(text.removesuffix(" frames")),
    )  # fmt: skip
    for strength in (0.3, 1.0):
        values = reference_values(good, version, image=torch.zeros(1, 16, 16, 3))
        assert follows(lambda n: NODE["OSoraReference"].execute(**{**values, "strength": n}), strength, float)  # noqa: B023


@pytest.mark.parametrize("version", ["2.0", "2.0 high compression"])
def test_methods_and_strategies_of_given_frames(version: str) -> None:
    samples = torch.zeros(1, releases.RELEASES[version].latents.channels, 12, 2, 2)
    reference = references.Reference(samples[0, :, :9], release=version)
    values = {
        "references": ReferenceChain((reference,)),
        "latent": {"samples": samples, "opensora_release": version},
        "method": "automatic", "mask_strategy": "", "align": True,
    }  # fmt: skip
    check = NODE["OSoraPlaceReferences"].check_early
    assert follows(lambda method: check(**{**values, "method": method}), "frame mask", str)
    for ratio in ("0.5", "1"):
        assert follows(lambda n: check(**{**values, "mask_strategy": f"0,0,0,0,1,{n}"}), ratio, str)


@pytest.mark.parametrize("version", releases.RELEASES)
def test_places_of_latents(version: str) -> None:
    release, followed = releases.RELEASES[version], 0
    clip = torch.zeros(release.latents.channels, 12, 2, 2)
    for latents in (1, 3, 11, 12, 17):
        for number in whole_numbers(13, count=10):
            reference = references.Reference(clip[:, :1].expand(-1, latents, -1, -1))
            followed += follows(
                lambda n: references.lay_out(
                    [replace(reference, target_start=n)], clip, release=release, align=release.given.align  # noqa: B023
                ), number,
            )  # fmt: skip
    assert followed > 50


@pytest.mark.parametrize("version", ["2.0", "2.0 high compression"])
def test_overlaps_with_references(version: str) -> None:
    from opensora.opensora_models.native.sampling.clips import ClipSize
    from opensora.opensora_models.native.sampling.long_video import _check_something_is_made

    clip = ClipSize(releases.RELEASES[version], 16, 16, 33, 12)
    for filled in ((11,), (8, 9, 10, 11), (0, 11), (2, 3), tuple(range(2, 12)), tuple(range(1, 12))):
        for number in range(1, 12):
            follows(lambda n: _check_something_is_made(clip, filled, n), number)  # noqa: B023


@pytest.mark.parametrize("version", releases.RELEASES)
def test_number_of_keyframes(good: GoodInputs, version: str) -> None:
    for number in range(1, 40):
        follows(
            lambda n: NODE["OSoraReference"].execute(
                **reference_values(good, version, image=torch.zeros(n, 16, 16, 3), placement="keyframes, evenly spread")
            ),
            number,
        )


def strategy_runs(text: str, lengths: tuple[int, ...] = (5, 1)) -> None:
    chain = [references.Reference(torch.zeros(4, length, 2, 2)) for length in lengths]
    groups = masks.parse_strategy(text)
    references.lay_out(references.apply_strategy(chain, groups), torch.zeros(4, 15, 2, 2), align=5)


def test_fields_of_a_mask_strategy() -> None:
    fields = {1: "0,{},0,0,1,0", 2: "0,0,{},0,1,0", 3: "0,0,0,{},1,0", 4: "0,0,0,0,{},0"}
    for template in fields.values():
        followed = [follows(lambda n: strategy_runs(template.format(n)), number) for number in whole_numbers(5)]  # noqa: B023
        assert any(followed), template
    for ratio in ("-0.5", "1.5", "1e9", "-inf", "nan"):
        follows(lambda value: strategy_runs(f"0,0,0,0,1,{value}"), ratio, str)
    said = attempt(lambda: strategy_runs("0,0,0,0,1,0", lengths=()))
    assert said and "connect" in said and "nearest" not in said


@pytest.mark.parametrize("version", releases.RELEASES)
def test_overlap_of_segments(version: str) -> None:
    for length in (1, 2, 5, 7, 10, 15, 35):
        for number in whole_numbers(6, count=20):
            follows(lambda n: segments.check_overlap(version, n, length), number)  # noqa: B023 (called at once)


@pytest.mark.parametrize("version", frames.VERSIONS)
def test_segments_of_references(good: GoodInputs, version: str) -> None:
    from opensora.opensora_models.native.sampling.long_video import _check_segments

    def refuse(segment: int) -> None:
        reference = references.Reference(torch.zeros(4, 1, 2, 2), segment=segment)
        _check_segments(ReferenceChain((reference,)), 3)

    assert sum(follows(refuse, number) for number in whole_numbers(7)) > 20


@pytest.mark.parametrize("version", frames.VERSIONS)
def test_true_lengths_of_latents(version: Any) -> None:
    for latents in (1, 2, 4, 5, 6, 9, 10, 15, 16):
        for number in whole_numbers(8, count=10):
            follows(lambda n: guards.check_num_frames(version, latents, n), number)  # noqa: B023 (called at once)


@pytest.mark.parametrize("version", releases.RELEASES)
def test_scores(version: str) -> None:
    for text in ("god", "excelent", "high", "-3", "nan", "inf", "verry hihg", "6.5", "x" * 300):
        for kind in ("aesthetic", "motion"):
            values = {"prompt": "a wave", "version": version, "aesthetic": "", "motion": "", "camera_motion": "off"}
            follows(lambda score: NODE["OSoraPromptBuilder"].execute(**{**values, kind: score}), text, str)  # noqa: B023
        follows(wording.check_aesthetic, text, str)


def test_counts_that_fill_groups() -> None:
    for number in (1, 2, 3, 4, 6, 7, 8, 11, 12, 13):
        assert follows(frames.frames_of_groups, number)
        if number > 1:
            assert follows(
                lambda n: statistics.V13_STATISTICS["video_5frames"].normalise(torch.zeros(1, 16, n, 1, 1)), number
            )


def test_prefixes_of_file_names() -> None:
    outside = ["../x", "/etc/x", "C:\\x", "a/../../b", ".", ".."]
    bad = ["", " ", "a\0b", "x" * 300, "a/" * 500 + "b", "con", "a" * 90 + "é" * 90, *outside]
    assert sum(follows(output_names.check_prefix, prefix, str) for prefix in bad) > 5


def test_settings_of_files() -> None:
    for number in (*whole_numbers(9), 2.6, -7.4, 1e12):
        follows(lambda value: settings.whole_number(value, "window", 1, 64), number)
        follows(lambda value: file_settings.groups_of({"groups": value}, (24, 48)), number)


@pytest.mark.parametrize("release", releases.RELEASES.values(), ids=lambda release: release.id)
def test_rules_of_the_releases(release: Any) -> None:
    latents, rule = release.latents, release.sizes
    assert sum(follows(lambda n: latents.lengths.check(n, release.title), number) for number in whole_numbers(10)) > 20
    check, random = release_sizes.check_size, Random(11)
    for _ in range(50):
        size = random.randrange(1, 9000), random.randrange(1, 9000)
        follows(lambda each: check(rule, release.title, *each), size, lambda text: tuple(map(int, text.split("×"))))
    for resolution in rule.resolutions:
        for ratio in ("0.21", "3.9", "1.77", "9:7", "1:5"):
            follows(lambda each: rule.size(resolution, each), ratio, str)  # noqa: B023 (called at once)
    patch = latents.patch
    for height, width in ((1, 1), (7, 9), (5, 4)):
        follows(
            lambda each: tokens.token_grid(torch.zeros(1, 1, 1, *each), patch), (height, width),
            lambda text: tuple(map(int, text.split("x"))),
        )  # fmt: skip


def test_motion_of_prompts() -> None:
    for text in ("strng", "stat", "0", "16", "-1", "1e9", "nan", "fast"):
        follows(suffixes.read_motion, text, str)


def test_clips_and_tiles_of_the_high_compression_autoencoder() -> None:
    with torch.device("meta"):
        network = tiled.OpenSora20HighCompression()
    space = network.space_factor
    for number in whole_numbers(12, count=20):
        follows(lambda n: network.encode_layout((n, space, space)), number)
        follows(lambda n: network.encode_layout((1, n, space)), number)
        if number > 0:
            size = tiled.Tiling(spatial=True, temporal=False, size=number)
            follows(lambda n: tiles_are_even(network, replace(size, size=n)), number)  # noqa: B023
        follows(lambda n: tiled_files._factor({"factor": n}, 4, "factor"), number)


def tiles_are_even(network: Any, tiling: Any) -> None:
    network.tiling = tiling
    network.expect_even_tiles()


def test_step_tables_and_what_guidance_reuse_means() -> None:
    assert all(follows(tables.read_table, flags, str) for flags in ("0", "01", "0 1 1 0", "0" * 100))
    assert all(follows(guidance_rows.GuidanceReuse, every) for every in (0, -3))
    for share in (-0.5, 1.5, float("nan"), float("inf")):
        assert follows(lambda after: guidance_rows.GuidanceReuse(2, after), share, float)


def test_numbers_of_a_timelines_plan() -> None:
    for field in timeline.FIELDS:
        row = '{"references": [{"%s": %s}]}'
        followed = [
            follows(lambda value: timeline.parse_plan(row % (field, value)), each, str)  # noqa: B023
            for each in ("-1", "-7", "0.5", "1.5", "1e9", "-1e9")
        ]
        assert sum(followed) > 3, field
    first, later = '{"text": "a", "segment": %s}', '{"text": "a"}, {"text": "b", "segment": %s}'
    for value, words in (("-1", first), ("-7", first), ("0.5", first), ("1.5", later), ("1e9", later)):
        prompts = '{"prompts": [' + words + "]}"
        assert follows(lambda each: timeline.parse_plan(prompts % each), value, str)  # noqa: B023


def test_pictures_of_a_timelines_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    class EncodingBegins(Exception):
        pass

    def encode(*told: Any) -> None:
        raise EncodingBegins

    monkeypatch.setattr(timeline_inputs, "encode_pictures", encode)
    clip = ClipSize(releases.RELEASES["1.3"], 64, 64, 17, 5)
    pictures = {number: torch.zeros(1, 64, 64, 3) for number in (1, 4)}

    def refuse(number: int) -> None:
        plan = timeline.parse_plan(f"0,{number}")
        with contextlib.suppress(EncodingBegins):
            timeline_inputs.plan_references(plan, pictures, None, clip, ReferenceChain(), "crop")

    assert all(follows(refuse, number) for number in (0, 2, 3, 5, 900))


@pytest.mark.parametrize(("own", "gpus"), [("cpu", 0), ("1", 3)])
def test_devices_that_share_a_clip(own: str, gpus: int) -> None:
    texts = ("", "0", "7", "0,7", "0,0", "1,1", "2", "cpu x 0", "cpu x 99", "cpu x 2", "none")
    assert sum(follows(lambda text: devices.shared_devices(text, own, gpus), text, str) for text in texts) > 8
    assert sum(follows(lambda text: devices.cluster_devices(text, own, gpus), text, str) for text in texts) > 8


def test_numbers_of_curves() -> None:
    for value in (-1e9, -0.1, 1.01, 7, 1e30):
        assert follows(lambda share: factor_curve.read_curve([[share, 1]]), value, float)
        assert follows(lambda factor: factor_curve.read_points("x", f"0:{factor}"), value, float)
    kind = {"points": [[0, 1]]}
    assert follows(lambda name: factor_curve.read_curve({**kind, "interpolation": name}), "bezier", str)


def test_numbers_of_references_with_curves() -> None:
    for count in (1, 2, 7):
        chain = [references.Reference(torch.zeros(4, 3, 2, 2), edit_ratio=1.0)] * count
        curve, tried = factor_curve.read_curve("0:0, 1:1"), (-10000, -count - 1, count, count + 1, 10000)
        assert all(follows(lambda n: strength_over_clip.with_strength_curve(chain, n, curve), n) for n in tried)  # noqa: B023
    said = attempt(lambda: strength_over_clip.with_strength_curve([], -1, factor_curve.FLAT))
    assert said and "connect" in said and "nearest" not in said


SWEPT = {
    "opensora_models/sampling/strength_over_clip.py": strength_over_clip,
    "opensora_models/sampling/factor_curve.py": factor_curve,
    "opensora_models/sampling/timeline.py": timeline,
    "opensora_models/native/sampling/timeline_inputs.py": timeline_inputs,
    "opensora_models/caching/tables.py": tables,
    "opensora_models/caching/guidance_rows.py": guidance_rows,
    "opensora_models/parallel/devices.py": devices,
    "opensora_models/parallel/on_ray.py": "test_parallel_on_ray.py connects to the Ray that is named",
    "opensora_models/native/model/parallel.py": "test_parallel_model.py asks for the devices that are named",
    "opensora_models/vae/tiled.py": tiled,
    "opensora_models/vae/tiled_files.py": tiled_files,
    "opensora_models/checkpoint/settings.py": settings,
    "opensora_models/vae/file_settings.py": file_settings,
    "opensora_models/mmdit/tokens.py": tokens,
    "opensora_models/releases/lengths.py": releases,
    "opensora_models/releases/sizes.py": release_sizes,
    "opensora_models/releases/shapes.py": "test_shapes_of_resolution_classes",
    "opensora_models/text/suffixes.py": suffixes,
    "opensora_models/storage/output_names.py": output_names,
    "opensora_models/native/files.py": "test_file_inputs.py opens every file that is suggested",
    "opensora_models/releases/groups.py": frames,
    "opensora_models/releases/printed_sizes.py": sizes,
    "opensora_models/sampling/placements.py": "test_frames_of_a_reference",
    "opensora_models/sampling/masks.py": masks,
    "opensora_models/sampling/references.py": references,
    "opensora_models/sampling/segments.py": segments,
    "opensora_models/text/wording.py": wording,
    "opensora_models/vae/guards.py": guards,
    "opensora_models/vae/statistics.py": statistics,
    "opensora_models/native/sampling/long_video.py": "test_segments_of_references, test_overlaps_with_references",
    "opensora_models/native/sampling/clips.py": "test_sampling_objects.py holds denoise; other sentences only tell",
    "nodes/door.py": "test_door.py sweeps all nodes",
}
"""The files whose sentences name a nearest value, each with what is swept here."""


def test_no_suggestion_is_left_out() -> None:
    files = [path for part in ("nodes", "opensora_models") for path in (PACK_ROOT / part).rglob("*.py")]
    suggesting = {
        path.relative_to(PACK_ROOT).as_posix()
        for path in files
        if re.search(r"the nearest (?:good|is|it|number|length|allowed)", path.read_text(encoding="utf-8"))
    }
    assert guidance and schedule  # their sentences name the allowed range, no value
    assert suggesting - set(SWEPT) == set()


@pytest.fixture(scope="module")
def good(executor: Executor) -> GoodInputs:
    return GoodInputs(executor)
