"""The copies of the English help pages: ComfyUI's page asks for ``<NodeId>/en.md`` before ``<NodeId>.md``."""

from __future__ import annotations

from .places import REPOSITORY

DOCS = REPOSITORY / "js" / "docs"


def copy_english_pages() -> list[str]:
    """Write every ``js/docs/<NodeId>/en.md`` that differs from ``<NodeId>.md``; the names of the nodes."""
    changed = []
    for page in sorted(DOCS.glob("*.md")):
        copy = DOCS / page.stem / "en.md"
        if not copy.is_file() or copy.read_bytes() != page.read_bytes():
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(page.read_bytes())
            changed.append(page.stem)
    return changed
