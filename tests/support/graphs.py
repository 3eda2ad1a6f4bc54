"""Small graphs in API form: widgets left out get their defaults, and latents come back as tensors."""

from __future__ import annotations

from typing import Any

from safetensors.torch import load
from torch import Tensor

from support.server import TestServer

Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a graph; a link is ``[name of the other node, number of its output]``."""
    return {"class_type": kind, "inputs": inputs}


def complete(prompt: Prompt, info: dict[str, Any]) -> Prompt:
    """The prompt with every widget left out at its default, as the page would send it."""
    full = {}
    for name, entry in prompt.items():
        inputs = dict(entry["inputs"])
        for key, spec in info[entry["class_type"]]["input"].get("required", {}).items():
            if key not in inputs and len(spec) > 1 and "default" in spec[1]:
                inputs[key] = spec[1]["default"]
            elif key not in inputs and (isinstance(spec[0], list) or spec[0] == "COMBO"):
                inputs[key] = (spec[0] if isinstance(spec[0], list) else spec[1]["options"])[0]
        full[name] = {**entry, "inputs": inputs}
    return full


def saved_latents(server: TestServer, info: dict[str, Any], prompt: Prompt, *names: str) -> dict[str, Tensor]:
    """Run a graph and give the latents of the nodes named (their first output)."""
    saves = {f"save_{name}": node("SaveLatent", samples=[name, 0], filename_prefix=name) for name in names}
    outputs = server.run(complete({**prompt, **saves}, info))
    found = {}
    for name in names:
        (item,) = outputs[f"save_{name}"]["latents"]
        found[name] = load(server.file(item))["latent_tensor"]
    return found
