"""Pictures of help pages: where the page looks for them, and small enough for everybody's download."""

from __future__ import annotations

import re

from PIL import Image

from support.pack import PACK_ROOT

DOCS = PACK_ROOT / "js" / "docs"
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
MOST_BYTES = 600_000


def test_every_picture_of_a_help_page_is_there_and_the_same_in_every_language() -> None:
    named = {page: PICTURE.findall(page.read_text(encoding="utf-8")) for page in DOCS.rglob("*.md")}
    files = {path for found in named.values() for _, path in found}
    assert files, "no page shows anything"
    for path in files:  # the page asks below `docs`, whatever folder the language's page lies in
        with Image.open(DOCS / path) as picture:
            assert picture.width >= 400
    assert sum((DOCS / path).stat().st_size for path in files) < MOST_BYTES
    for page, found in named.items():
        paths = [path for _, path in found]
        english = DOCS / f"{page.parent.name}.md"
        assert page.parent == DOCS or paths == [path for _, path in named[english]], page
    unused = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.webp")} - files
    assert unused == set()
