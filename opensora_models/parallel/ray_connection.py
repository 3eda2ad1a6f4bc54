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
GREETING = 5.0
"""Seconds within which it greets; an idle one needs a thousandth."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2 begins, which gRPC and thus Ray speak: the preface and an empty frame of settings (RFC 9113,
3.4). Whoever speaks it sends a frame of its own settings first; one of HTTP/1 refuses the method PRI."""
SETTINGS = bytes((4, 0))
"""Kind and flags of that frame, behind the three bytes of its length."""
PORT = 6379
"""Of a cluster that was started without another."""


def module_for(address: str) -> Any:
    """Ray's module, told beforehand how to behave for the cluster at ``address``. Raises ImportError where none is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    if address == LOCAL:
        _stay_on_this_machine()
    return importlib.import_module("ray")


def connect_to(ray: Any, address: str, **more: Any) -> None:
    """Connect to a Ray of our own on the loopback, or to the cluster at ``address``.

    Raises OSError where nobody listens there, or another than Ray, and one of Ray's many kinds.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", **more}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    _expect_ray(ray, address)
    ray.init(address=address, **quiet)


def _expect_ray(ray: Any, address: str) -> None:
    """Somebody who greets as Ray does listens where Ray would ask for ``address``. Raises OSError."""
    asked = _asked(ray, address)
    host, _, port = asked.rpartition("://")[2].rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        return  # a word of Ray's, or something that Ray refuses at once
    fault = _fault_at(host.strip("[]"), int(port))
    if fault:
        known = "" if asked == address else f"{address} is {host}:{port} for Ray, and "
        raise OSError(known + fault.format(place=f"{host}:{port}"))


def _asked(ray: Any, address: str) -> str:
    """Where Ray would ask: ``auto`` is what a variable or a file says, and localhost this machine's own address."""
    if "://" in address:
        return address  # of a server for clients, which is asked as it is
    try:
        return str(ray._private.services.canonicalize_bootstrap_address(address) or address)
    except Exception:  # no cluster is found, which Ray says at once; or that is no part of this version of Ray
        return address


def _fault_at(host: str, port: int) -> str:
    """Why nobody is there who speaks as Ray does, a sentence on a ``{place}``; empty where somebody does."""
    try:
        connection = socket.create_connection((host, port), ANSWERING)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"nobody listens at {{place}} ({why})"
    with connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return ""  # greetings that are encrypted are Ray's to judge
        connection.settimeout(GREETING)
        try:
            connection.sendall(HELLO)
            answer = connection.recv(9)
        except TimeoutError:
            return f"whoever listens at {{place}} gives no answer within {GREETING:g} s"
        except OSError:  # hangs up
            answer = b""
    if answer.startswith((b"HTTP", b"<")):  # Python's own web server answers an unknown version by a page alone
        return f"a web server listens at {{place}}; the port of a cluster is {PORT} unless another was chosen"
    return "" if answer[3:5] == SETTINGS else "whoever listens at {place} does not answer as Ray does"


def _stay_on_this_machine() -> None:
    """A Ray of our own listens to the loopback alone, and only to those who know its token. Before Ray is imported.

    Left to itself Ray on Linux gives its node the machine's address and opens its ports to everybody; with the first
    variable it does as on other systems, where it stays on the loopback.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process; none is written to a file
