"""Short texts on a node in the page, for things a person should see and not only find in the log."""

from __future__ import annotations


def show_on_node(node_id: str | None, text: str) -> None:
    """Show ``text`` under the node while the graph runs; nothing happens where no page is listening."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None and text:
        server.send_progress_text(text, node_id)
