"""Makes the pack importable as ``opensora`` for every test module."""

from __future__ import annotations

from support.pack import load_pack

load_pack()
