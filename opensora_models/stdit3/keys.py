"""Our state-dict keys against those of the released checkpoints.

They are equal except for the modulation tables. A released file stores ``<block>.scale_shift_table``, a bare
parameter; here each table is the ``weight`` of a leaf layer, because ComfyUI patches, streams and casts leaves only.
"""

from __future__ import annotations

TABLE = "scale_shift_table"


def to_checkpoint_key(key: str) -> str:
    """``spatial_blocks.0.scale_shift_table.weight`` -> ``spatial_blocks.0.scale_shift_table``; others unchanged."""
    return key.removesuffix(".weight") if key.endswith(f"{TABLE}.weight") else key


def from_checkpoint_key(key: str) -> str:
    """``spatial_blocks.0.scale_shift_table`` -> ``spatial_blocks.0.scale_shift_table.weight``; others unchanged."""
    return f"{key}.weight" if key.endswith(TABLE) else key
