"""What the registry shows of the pack: an icon and a banner that are there, of a size it takes."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from support.pack import PACK_ROOT

PROJECT = (PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Documented: 1:1 and at most 400 pixels, and 21:9; PNG among others. Pictures are shown by their address.
PICTURES = {"Icon": (1, 1, 400), "Banner": (21, 9, 1680)}


@pytest.mark.parametrize("field", PICTURES)
def test_pictures_of_the_registry(field: str) -> None:
    (repository,) = re.findall(r'^Repository = "https://github\.com/([^"]+)"$', PROJECT, re.M)
    (address,) = re.findall(rf'^{field} = "([^"]+)"$', PROJECT, re.M)
    start = f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(start)
    path = PACK_ROOT / address.removeprefix(start)
    wide, high, most = PICTURES[field]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width * high == picture.height * wide and picture.width <= most
    assert path.with_suffix(".svg").is_file() and path.stat().st_size < 200_000
