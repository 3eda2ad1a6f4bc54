"""The nodes people see, in the order of a graph: size, load, text, references, sample, decode."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .size import EmptyLatent, Size

NODES: list[type[io.ComfyNode]] = [
    Size,
    EmptyLatent,
]


class OpenSoraExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
