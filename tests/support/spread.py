"""How the tests are spread over several processes: what shares something slow to make runs in the same one.

xdist's own groups do not work with pytest 9.2 (it changes test ids through an attribute that is no longer read), so the
grouping is by file: it needs nothing but the ids.
"""

from __future__ import annotations

from functools import cache

from xdist.scheduler import LoadScopeScheduling

from support.pack import PACK_ROOT

SERVER, COMFY = "server", "comfy"


class SharedScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """One process for all tests of the server, one for all that import ComfyUI; the rest is spread one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::", 1)[0]) or nodeid


@cache
def group_of(file: str) -> str | None:
    """The group of a test file, given by its path inside the repository; None for tests that share nothing."""
    if not file.startswith(("tests/comfy/", "tests/browser/")):
        return None
    return SERVER if "mark.server" in (PACK_ROOT / file).read_text(encoding="utf-8") else COMFY
