"""What core's save nodes write, run in this process: the path of the new file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def saved(node: str, prefix: str, **inputs: Any) -> Path:
    """The one file that core's ``VAESave``, ``ModelSave``, ``CLIPSave`` or ``CheckpointSave`` writes."""
    import folder_paths
    from comfy_extras import nodes_model_merging

    output = Path(folder_paths.get_output_directory())
    before = set(output.rglob("*.safetensors"))
    getattr(nodes_model_merging, node)().save(filename_prefix=prefix, **inputs)
    (new,) = set(output.rglob("*.safetensors")) - before
    return new
