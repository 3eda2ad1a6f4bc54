"""What a command line asks for and cannot have, found out later than at the door."""

from __future__ import annotations


class Refused(ValueError):
    """Ends a program of training with its message alone, where a mistake of ours ends with a traceback."""
