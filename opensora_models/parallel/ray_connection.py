"""A connection to Ray, as *Open-Sora Parallel* and ``batch.py`` make it; each says in its way what failed.

Nothing but Python's own library: ``devtools/batch/ray_engine.py``, which may import nothing else, loads this file by
its path.
"""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import ssl
import time
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
CALL = b"\x83\x86\x04\x0f/opensora/probe\x01\x01r\x00\x02te\x08trailers\x0f\x10\x10application/grpc"
"""Headers of a call of gRPC that nobody has, as of RFC 7541: its library answers by itself that it has none, in words
of gRPC, however busy Ray is. Other servers of HTTP/2 answer as to a browser, or not at all."""
GRPC = (b"application/grpc", bytes.fromhex("1d75d0620d263d4c4d6564"))
"""The kind of content of such an answer, as it is and in the code of RFC 7541, which proxies use."""
SETTINGS, HEADERS = bytes((4, 0)), 1
"""Kind and flags of the first frame, behind the three bytes of its length; kind of the one that answers a call."""
ENDS = (3, 7)
"""Kinds of frames by which a call, or all of them, are given up."""
PORT = 6379
"""Of a cluster that was started without another."""
WEB = f"a web server listens at {{place}}; the port of a cluster is {PORT} unless another was chosen"
STRANGER = "whoever listens at {place} does not answer as Ray does"


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
        until = time.monotonic() + GREETING
        try:
            connection.settimeout(GREETING)
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                connection = _encrypted(connection)
            connection.sendall(HELLO + len(CALL).to_bytes(3, "big") + bytes((HEADERS, 5, 0, 0, 0, 1)) + CALL)
            return _fault_of(connection, until)
        except TimeoutError:
            return f"whoever listens at {{place}} gives no answer within {GREETING:g} s"
        except OSError:  # hangs up, or knows of no encryption
            return STRANGER
        finally:
            connection.close()


def _fault_of(connection: socket.socket, until: float) -> str:
    """Why the answer is not that of a server of gRPC; empty where it is. Raises OSError, TimeoutError at ``until``."""
    frame = _read(connection, 9, until)
    if frame.startswith((b"HTTP", b"<")):  # Python's own web server answers an unknown version by a page alone
        return WEB
    if frame[3:5] != SETTINGS:
        return STRANGER
    while len(frame) == 9 and frame[3] not in ENDS:
        content = _read(connection, int.from_bytes(frame[:3], "big"), until)
        if frame[3] == HEADERS:
            return "" if any(kind in content for kind in GRPC) else WEB
        frame = _read(connection, 9, until)
    return STRANGER


def _read(connection: socket.socket, count: int, until: float) -> bytes:
    """So many bytes, fewer where no more come. Raises TimeoutError where it takes until then, and OSError."""
    content = b""
    while len(content) < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(count - len(content))
        if not piece:
            break
        content += piece
    return content


def _encrypted(connection: socket.socket) -> socket.socket:
    """The same with TLS, as whom Ray would be; who the other is, is Ray's to judge. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    certificate, key = (os.environ.get(f"RAY_TLS_SERVER_{part}", "") for part in ("CERT", "KEY"))
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(connection)


def _stay_on_this_machine() -> None:
    """A Ray of our own listens to the loopback alone, and only to those who know its token. Before Ray is imported.

    Left to itself Ray on Linux gives its node the machine's address and opens its ports to everybody; with the first
    variable it does as on other systems, where it stays on the loopback.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process; none is written to a file
