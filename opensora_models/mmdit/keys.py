"""Our state-dict keys against those of the released checkpoints.

They are equal except for the norms of queries and keys. A released file stores ``<norm>.scale``; here the norm is an
ordinary RMS norm layer, whose parameter is called ``weight``, because ComfyUI patches, streams and casts it then.
"""

from __future__ import annotations

NORMS = ("query_norm", "key_norm")


def to_checkpoint_key(key: str) -> str:
    """``….norm.query_norm.weight`` -> ``….norm.query_norm.scale``; others unchanged."""
    stem, _, name = key.rpartition(".")
    return f"{stem}.scale" if name == "weight" and stem.endswith(NORMS) else key


def from_checkpoint_key(key: str) -> str:
    """``….norm.query_norm.scale`` -> ``….norm.query_norm.weight``; others unchanged."""
    stem, _, name = key.rpartition(".")
    return f"{stem}.weight" if name == "scale" and stem.endswith(NORMS) else key
