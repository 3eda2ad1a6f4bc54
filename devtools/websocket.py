"""A WebSocket client (RFC 6455) as small as ComfyUI's local progress channel needs.

The standard library has none, and one must work before any package is installed. It offers no extension, so the
server never compresses.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """One connection; ``receive`` gives text as ``str`` and binary messages as ``bytes``."""

    def __init__(self, url: str, timeout: float) -> None:
        """Connect to ``http://host:port/path?query`` and switch protocols; OSError where the server refuses."""
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16)).decode("ascii")
        request = (
            f"GET {parts.path or '/'}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode("ascii"))
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"no WebSocket at {url}: {head.splitlines()[0].decode('latin-1')}")

    def send(self, text: str) -> None:
        """Send one text message."""
        self._send_frame(TEXT, text.encode("utf-8"))

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message; None when the server closed. TimeoutError when nothing came in time."""
        self._socket.settimeout(timeout)
        kind, parts = 0, []
        while True:
            final, opcode, payload = self._read_frame()
            if opcode == CLOSE:
                return None
            if opcode == PING:
                self._send_frame(PONG, payload)
            elif opcode != PONG:
                kind = opcode or kind  # opcode 0 continues the message before it
                parts.append(payload)
                if final:
                    message = b"".join(parts)
                    return message.decode("utf-8") if kind == TEXT else message

    def close(self) -> None:
        """Say goodbye and close; never raises."""
        with contextlib.suppress(OSError):
            self._send_frame(CLOSE, b"")
        self._socket.close()

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        mask = os.urandom(4)  # clients must mask, servers must not
        self._socket.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))

    def _read_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return bool(first & 0x80), first & 0x0F, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
