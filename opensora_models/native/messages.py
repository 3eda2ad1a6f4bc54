"""What people should know of a run: said in the log and, while a node runs, on the node in the page as well."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..messages.printable import printable
from .running_graph import graph_of

try:
    from comfy_execution.utils import get_executing_context
except ImportError:  # ComfyUI before 0.3.48 does not tell
    get_executing_context = None

logger = logging.getLogger("opensora")

_ON_THE_NODE = "opensora_on_the_node"

EVENT = "opensora.told"
"""What our part of the page (``js/told.js``) is sent beside ComfyUI's own text of a node."""

_said: ContextVar[list[str] | None] = ContextVar("opensora_said", default=None)
_elsewhere: ContextVar[tuple[tuple[str, str], list[str]] | None] = ContextVar("opensora_elsewhere", default=None)
_hushed: ContextVar[bool] = ContextVar("opensora_hushed", default=False)


@contextmanager
def speaking() -> Iterator[list[str]]:
    """While a node runs: everything told is collected, in order, and shown on that node. Gives the sentences."""
    said: list[str] = []
    token = _said.set(said)
    try:
        yield said
    finally:
        _said.reset(token)


@contextmanager
def hushed() -> Iterator[None]:
    """While inputs are only looked at: nothing is told, since it will be when they are used."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


def tell(*sentences: str, level: int = logging.WARNING) -> None:
    """Say what a person should know of what they get: a log line each, and the node's text gets longer.

    The node is the one that runs, core's KSampler or LoRA loader as well. Empty sentences are left out, and a node
    says nothing twice. ``level`` is the log's.
    """
    if _hushed.get():
        return
    known = _said_so_far()
    for sentence in filter(None, sentences):
        if sentence in known:
            continue
        logger.log(level, "%s", sentence, extra={_ON_THE_NODE: True})
        known.append(sentence)
    if known:
        show_on_node(_running_node(), "\n".join(known))


class WarningsOnTheNode(logging.Handler):
    """Shows on the running node what a room that knows no nodes warns of: a file left out, a piece made again.

    What such a room says below the level of a warning stays in the log. Started with ``--verbose ERROR`` ComfyUI makes
    no warnings, and these are none on the node either; what is told is.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Adds the record's text to what the running node says, once, unless it comes from :func:`tell`."""
        if _hushed.get() or hasattr(record, _ON_THE_NODE):
            return
        try:
            known, sentence = _said_so_far(), record.getMessage()
            if sentence not in known:
                known.append(sentence)
                show_on_node(_running_node(), "\n".join(known))
        except Exception:
            self.handleError(record)


def told() -> str:
    """What the running node has said so far, a sentence a line: its report."""
    return "\n".join(_said.get() or ())


def show_on_node(node_id: str | None, text: str) -> None:
    """Show ``text`` under the node while the graph runs; nothing happens where no page is listening."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None and text:
        shown = printable(text)
        server.send_progress_text(shown, node_id)
        _let_it_be_kept(server, node_id, shown)


def _let_it_be_kept(server: Any, node_id: str, text: str) -> None:
    """Newer pages forget what a node says when the run ends; the one that started it is sent it to be kept."""
    client = getattr(server, "client_id", None)
    if client is not None:
        run = _running_prompt()
        event = {"node": node_id, "text": text, "prompt_id": run, "graph": graph_of(server, run)}
        server.send_sync(EVENT, event, client)


def _said_so_far() -> list[str]:
    said = _said.get()
    return _said_elsewhere() if said is None else said


def _said_elsewhere() -> list[str]:
    """What has been said while the running node, one that is not ours, runs: a KSampler asks the MODEL row by row."""
    context = get_executing_context() if get_executing_context is not None else None
    if context is None:
        return []
    running, held = (context.prompt_id, context.node_id), _elsewhere.get()
    if held is None or held[0] != running:
        held = running, []
        _elsewhere.set(held)
    return held[1]


def _running_node() -> str | None:
    context = get_executing_context() if get_executing_context is not None else None
    return None if context is None else context.node_id


def _running_prompt() -> str | None:
    context = get_executing_context() if get_executing_context is not None else None
    return None if context is None else context.prompt_id
