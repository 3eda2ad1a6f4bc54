"""Both pages people have: the one ComfyUI 0.30 asks for, and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.browser import Browser
    from support.server import LoggedServer


@dataclass(frozen=True)
class Page:
    """A page in a browser, and the server behind it."""

    browser: Browser
    server: LoggedServer
    is_newest: bool


@pytest.fixture(params=["page of 0.30", "newest page"])
def each_page(request: pytest.FixtureRequest) -> Page:
    """One page after the other; skipped with the reason where there is no browser."""
    from support.browser import Browser, why_not

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    is_newest = request.param == "newest page"
    server = request.getfixturevalue("bare_server" if is_newest else "server")
    server.forgive_log()
    return Page(Browser(server.url), server, is_newest)
