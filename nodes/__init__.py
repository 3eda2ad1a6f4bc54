"""The nodes people see, in the order of a graph: size, load, text, references, sample, decode."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..opensora_models.native import startup
from .model_loader import ModelLoader
from .size import EmptyLatent, Size

NODES: list[type[io.ComfyNode]] = [
    Size,
    EmptyLatent,
    ModelLoader,
]


class OpenSoraExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def on_load(self) -> None:
        """Called once before the nodes are asked for."""
        startup.start()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
