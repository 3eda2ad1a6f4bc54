"""A connection to Ray, as *Open-Sora Parallel* and ``batch.py`` make it; each says in its way what failed.

Nothing but Python's own library: ``devtools/batch/ray_engine.py``, which may import nothing else, loads this file by
its path.
"""

from __future__ import annotations

import importlib
import os
import secrets
import socket
from typing import Any

LOCAL = "local"
"""The address of a Ray that is started here for this process alone."""
INSTALL = "-m pip install 'ray>=2.40'"
"""Behind the name of a Python."""
ANSWERING = 3.0
"""Seconds within which the port of a cluster takes a connection; Ray itself asks again for a quarter of an hour."""


def module_for(address: str) -> Any:
    """Ray's module, told beforehand how to behave for the cluster at ``address``. Raises ImportError where none is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    if address == LOCAL:
        _stay_on_this_machine()
    return importlib.import_module("ray")


def connect_to(ray: Any, address: str, **more: Any) -> None:
    """Connect to a Ray of our own on the loopback, or to the cluster at ``address``.

    Raises OSError where nobody listens there, and one of Ray's many kinds.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", **more}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    _expect_somebody(address)
    ray.init(address=address, **quiet)


def _expect_somebody(address: str) -> None:
    """Somebody listens at ``host:port``, be it written with Ray's scheme or without. Raises OSError."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        return  # a word of Ray's, or something that Ray refuses at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERING).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise OSError(f"nobody listens at {host}:{port} ({why})") from None


def _stay_on_this_machine() -> None:
    """A Ray of our own listens to the loopback alone, and only to those who know its token. Before Ray is imported.

    Left to itself Ray on Linux gives its node the machine's address and opens its ports to everybody; with the first
    variable it does as on other systems, where it stays on the loopback.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process; none is written to a file
