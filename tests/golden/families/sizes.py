"""Sizes, lengths and latent shapes of ``utils.json``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from golden.runner import Row, runs_table
from opensora.opensora_models.releases import groups as frames
from opensora.opensora_models.releases import printed_sizes as sizes

REFUSED = "refused"


def _register(version: frames.Version) -> None:
    tables: dict[str, Any] = {}

    @runs_table("utils", version_key(version), "resolutions")
    def class_tables(data: dict[str, Any]) -> Iterator[Row]:
        tables.update(data)
        for name, entry in data.items():
            recorded = {f"{float(key):.2f}": tuple(size) for key, size in entry["sizes"].items()}
            yield Row(name, sizes.class_sizes(name), recorded)

    @runs_table("utils", version_key(version), "aspect_ratio_map")
    def ratio_names(data: dict[str, str]) -> Iterator[Row]:
        yield Row("names", sizes.aspect_ratios(), data)

    @runs_table("utils", version_key(version), "get_image_size")
    def image_sizes(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            resolution, ratio = row["in"]
            want: Any = tuple(row["out"]) if "out" in row else REFUSED
            if want == REFUSED and (repaired := _hidden_by_spelling(tables[resolution]["sizes"], ratio)):
                want = repaired
            yield Row(f"{resolution} {ratio}", _or_refused(sizes.image_size, resolution, ratio), want)

    @runs_table("utils", version_key(version), "get_closest_ratio")
    def ratios(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), float(sizes.closest_ratio(*row["in"])), float(row["out"]))

    @runs_table("utils", version_key(version), "get_num_frames")
    def lengths(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), _or_refused(sizes.num_frames, row["in"]), row.get("out", REFUSED))

    @runs_table("utils", version_key(version), "latent_size")
    def latent_sizes(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), frames.latent_size(version, *row["in"]), row["out"])

    @runs_table("utils", version_key(version), "dframe_to_frame")
    def group_frames(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), _or_refused(frames.frames_of_groups, row["in"]), row.get("out", REFUSED))


def version_key(version: str) -> str:
    """The tables name versions "v1.2" and "v1.3"."""
    return f"v{version}"


def _hidden_by_spelling(recorded: dict[str, list[int]], ratio: str) -> tuple[int, ...] | None:
    """The original looks "1.0" up under "1.00" and misses it; we find the size its own table holds."""
    key = sizes.aspect_ratios()[ratio]
    for name, size in recorded.items():
        if name != key and f"{float(name):.2f}" == key:
            return tuple(size)
    return None


def _or_refused(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError:
        return REFUSED


for _version in frames.VERSIONS:
    _register(_version)
