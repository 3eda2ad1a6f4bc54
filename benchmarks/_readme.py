"""Tables of measured numbers on pages: made of what is kept in ``results/``, so that no number is written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARES = ("70", "60", "50", "40")


def ratio_table(record: Mapping[str, Any]) -> list[str]:
    """Markdown of ``ratios.py``."""
    lines = ["| Beside a plain rewrite | times as fast | memory | apart |", "| --- | --- | --- | --- |"]
    for found in record["rows"]:
        memory = "" if found["memory"] is None else f"{found['memory']:.0%}"
        apart = "equal" if found["apart"] == 0 else f"{found['apart']:.0e}"
        lines.append(f"| {found['name']} | {found['time']:.2f} | {memory} | {apart} |")
    return [*lines, "", f"Measured {record['date']} by `python benchmarks/ratios.py` on {record['machine']}."]


def cache_table(record: Mapping[str, Any]) -> list[str]:
    """Markdown of ``caches.py``: a row a release."""
    lines = [f"| Release | Date | Prompts × clips | {' | '.join(f'{share} %' for share in SHARES)} | |"]
    lines.append("| --- " * (len(SHARES) + 4) + "|")
    for release, found in sorted(record.items()):
        cells = [_gain(found["shares"][share]) for share in SHARES]
        lines.append(
            f"| tiny {release} | {found['date']} | {found['prompts']} × {found['clips']} | {' | '.join(cells)} "
            f"| {found['rights']} |"
        )
    return lines


def _gain(found: Mapping[str, Any]) -> str:
    """As in "+5.1 ± 0.9 dB beside easy, 61.2 at 34.0 rows, 1.38 times as fast"."""
    speed = f"{found['speed']:.2f} times as fast"
    if found["best"] is None:
        return f"{found['psnr']:.1f} dB at {found['rows']:.1f} rows, {speed}; nothing else computes so many"
    return (
        f"{found['gain']:+.1f} ± {found['half']:.1f} dB beside {found['best']}, {found['psnr']:.1f} at "
        f"{found['rows']:.1f} rows, {speed}"
    )


PAGES: dict[str, tuple[Path, Callable[[Mapping[str, Any]], list[str]]]] = {
    "ratios": (HERE.parent / "README.md", ratio_table),
    "caches": (HERE / "README.md", cache_table),
}
"""Name of what is kept -> the page that shows it, and how."""


def kept(name: str) -> dict[str, Any]:
    """The numbers kept under a name; none where nothing was measured yet."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def keep(name: str, record: Mapping[str, Any]) -> None:
    """Keep numbers, and put their table into its page."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page, _ = PAGES[name]
    page.write_text(shown(name), encoding="utf-8")


def shown(name: str) -> str:
    """The page as it is with the table of what is kept."""
    page, lines = PAGES[name]
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return "\n".join([before + begin, *lines(kept(name)), end + rest.split(end)[1]])
