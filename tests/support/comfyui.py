"""Finds ComfyUI and brings it into the test process, on the CPU, with a throw-away base directory."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from support.pack import PACK_ROOT, load_pack

DEFAULT_TREE = PACK_ROOT / ".comfyui" / "0.30.0"
MODEL_FOLDERS = ("diffusion_models", "vae", "text_encoders", "checkpoints")
COLLECTOR = "OSoraTestCollector"


def comfyui_root() -> Path | None:
    """The ComfyUI to test with: ``COMFYUI_PATH``, else the tree ``dev.py`` made; None where there is none."""
    root = Path(os.environ.get("COMFYUI_PATH") or DEFAULT_TREE).resolve()
    return root if (root / "main.py").is_file() and (root / "comfy").is_dir() else None


def on_gpu() -> bool:
    """Whether ComfyUI may use the accelerator (``OPENSORA_TEST_GPU=1``); all ordinary tests run on the CPU."""
    return os.environ.get("OPENSORA_TEST_GPU") == "1"


def use_comfyui() -> Path:
    """Make ``import comfy`` work in this process; call it before any comfy import. Safe to call again.

    ComfyUI reads its settings from the command line while it is imported, so the command line is replaced for the
    moment of the import.
    """
    root = comfyui_root()
    if root is None:
        raise RuntimeError("no ComfyUI found: run `python dev.py test`, or set COMFYUI_PATH to a ComfyUI folder")
    if str(root) in sys.path:
        return root
    base = Path(tempfile.mkdtemp(prefix="opensora-comfy-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (base / name).mkdir()
    sys.path.insert(0, str(root))
    with _command_line("comfyui", "--base-directory", str(base), *([] if on_gpu() else ["--cpu"])):
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    # ComfyUI 0.18 and older have a package `utils`; whoever imports a module of that name first decides.
    importlib.import_module("utils.extra_config")
    return root


@contextlib.contextmanager
def _command_line(*arguments: str) -> Iterator[None]:
    before, sys.argv = sys.argv, list(arguments)
    try:
        yield
    finally:
        sys.argv = before


def show_models(folder: Path) -> None:
    """Let the ComfyUI in this process list the model files below ``folder``."""
    import folder_paths

    for name in MODEL_FOLDERS:
        folder_paths.add_model_folder_path(name, str(folder / name))


class NodeError(Exception):
    """A node raised, or the prompt was refused; ``message`` is what the person would read."""

    def __init__(self, message: str, node_id: str = "") -> None:
        self.message, self.node_id = message, node_id
        super().__init__(f"node {node_id}: {message}" if node_id else message)


class Executor:
    """ComfyUI's own prompt executor in this process: faster than the server, and it gives the Python values."""

    def __init__(self) -> None:
        use_comfyui()
        import execution
        import server

        self.client_id = None  # the executor asks its server for these two
        self.last_node_id = None
        self._loop = asyncio.new_event_loop()
        self._prompts = 0
        self._collected: dict[str, Any] = {}
        self._extras_loaded = False
        self._execution = execution
        asyncio.set_event_loop(self._loop)
        server.PromptServer(self._loop)
        self._loop.run_until_complete(self._register_pack())
        self._register_collector()
        self._executor = execution.PromptExecutor(
            self,
            cache_type=execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 2.0, "ram_inactive": 16.0},
        )

    def send_sync(self, event: str, data: Any, client: str | None = None) -> None:
        """Events for a browser; nobody listens here."""

    def run(
        self, prompt: dict[str, dict[str, Any]], *collect: tuple[str, int], page: dict[str, Any] | None = None
    ) -> list[Any]:
        """Run a prompt in API form; gives the values of the outputs named ``(node id, output number)``.

        ``page`` is the workflow that the page sends along. NodeError where ComfyUI refuses the prompt or a node raises.
        """
        full = copy.deepcopy(prompt)  # ComfyUI notes in a prompt whether nodes have changed
        names = [f"collect_{node}_{output}" for node, output in collect]
        for name, (node, output) in zip(names, collect, strict=True):
            full[name] = {"class_type": COLLECTOR, "inputs": {"value": [node, output], "name": name}}
        self._load_extras_if_needed(node["class_type"] for node in full.values())
        self._prompts += 1
        self._collected.clear()
        self._loop.run_until_complete(self._run(f"prompt-{self._prompts}", full, page))
        return [self._collected[name] for name in names]

    def validate(self, prompt: dict[str, dict[str, Any]]) -> str | None:
        """What ComfyUI objects to in a prompt in API form, without running it; None when it is fine."""
        self._load_extras_if_needed(node["class_type"] for node in prompt.values())
        valid, error, _, node_errors = self._loop.run_until_complete(
            self._execution.validate_prompt("validate", prompt, None)
        )
        return None if valid else f"{error} {node_errors}"

    def errors(self, prompt: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """ComfyUI's objections to a prompt by node, as its page gets them; the inputs they name are marked there."""
        self._load_extras_if_needed(node["class_type"] for node in prompt.values())
        *_, node_errors = self._loop.run_until_complete(self._execution.validate_prompt("validate", prompt, None))
        return {node: entry["errors"] for node, entry in node_errors.items()}

    def executed(self) -> set[str]:
        """The nodes of the last run that had run when it failed."""
        events = (data["executed"] for event, data in self._executor.status_messages if event == "execution_error")
        return {node for nodes in events for node in nodes}

    def cached(self) -> set[str]:
        """The nodes of the last run whose results were still there."""
        events = (data["nodes"] for event, data in self._executor.status_messages if event == "execution_cached")
        return {node for nodes in events for node in nodes}

    def shown(self, node: str) -> dict[str, Any]:
        """What a node gave the page in the last run."""
        return dict(self._executor.history_result["outputs"].get(node, {}))

    def reset(self) -> None:
        """Forget all cached outputs."""
        self._executor.reset()

    def close(self) -> None:
        """End the event loop."""
        self._loop.close()

    async def _run(self, prompt_id: str, prompt: dict[str, Any], page: dict[str, Any] | None) -> None:
        valid, error, outputs, node_errors = await self._execution.validate_prompt(prompt_id, prompt, None)
        if not valid:
            raise NodeError(f"{error} {node_errors}")
        extra = {"extra_pnginfo": {"workflow": page}} if page else {}
        await self._executor.execute_async(prompt, prompt_id, extra, outputs)
        for event, data in self._executor.status_messages:
            if event == "execution_error":
                raise NodeError(data["exception_message"], str(data["node_id"]))
            if event == "execution_interrupted":
                raise NodeError("interrupted", str(data["node_id"]))

    async def _register_pack(self) -> None:
        """The pack is already loaded as ``opensora``; loading it again by path would make every class twice."""
        import nodes

        extension = await load_pack().comfy_entrypoint()
        await extension.on_load()
        for node in await extension.get_node_list():
            nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node

    def _register_collector(self) -> None:
        import nodes

        collected = self._collected

        class Collector:
            """Keeps what reaches it; runs every time."""

            INPUT_TYPES = classmethod(lambda cls: {"required": {"value": ("*",), "name": ("STRING",)}})
            RETURN_TYPES = ()
            OUTPUT_NODE = True
            FUNCTION = "collect"
            IS_CHANGED = classmethod(lambda cls, **_: float("nan"))
            VALIDATE_INPUTS = classmethod(lambda cls, input_types: True)

            def collect(self, value: Any, name: str) -> dict[str, Any]:
                collected[name] = value
                return {}

        nodes.NODE_CLASS_MAPPINGS[COLLECTOR] = Collector

    def _load_extras_if_needed(self, types: Iterable[str]) -> None:
        """ComfyUI keeps most nodes in extra files, slow to load: only when a prompt names one of them."""
        import nodes

        if not self._extras_loaded and any(name not in nodes.NODE_CLASS_MAPPINGS for name in types):
            self._extras_loaded = True
            self._loop.run_until_complete(nodes.init_builtin_extra_nodes())
