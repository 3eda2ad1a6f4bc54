"""Which workflow of the page a run belongs to: nodes of different workflows have the same numbers."""

from __future__ import annotations

from typing import Any


def graph_of(server: Any, prompt_id: str | None) -> str | None:
    """The id of the workflow that the page sent along with a prompt; None where it sent none, or the prompt is over."""
    running = getattr(getattr(server, "prompt_queue", None), "currently_running", None) or {}
    for item in tuple(running.values()):
        if len(item) > 3 and item[1] == prompt_id and isinstance(item[3], dict):
            page = item[3].get("extra_pnginfo") or {}
            workflow = page.get("workflow") if isinstance(page, dict) else None
            return workflow.get("id") if isinstance(workflow, dict) else None
    return None
