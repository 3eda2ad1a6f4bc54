"""Makes the pack importable as ``opensora``, and lends the tests a ComfyUI: in this process, or as a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# As `dev.py test` has it, before torch is imported: last bits depend on how many threads share a sum.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from support import random_weights
from support.comfyui import Executor, comfyui_root, show_models, use_comfyui
from support.pack import load_pack

load_pack()

if TYPE_CHECKING:
    from support.browser import Browser
    from support.server import BareServer, TestServer

NO_COMFYUI = "no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH"


@pytest.hookimpl(optionalhook=True)  # only asked where xdist is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share a server, or ComfyUI imported into the process, in one of several test processes."""
    from support.spread import SharedScheduling

    return SharedScheduling(config, log)


@pytest.fixture
def any_tokenizer(tmp_path: Path) -> str:
    """A folder that passes for T5's tokenizer, for programs of ``training`` whose words a test cuts itself."""
    folder = tmp_path / "t5_tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="session")
def comfy() -> Path:
    """ComfyUI importable in this process (CPU); gives its folder. Import comfy inside the test, never above it."""
    if comfyui_root() is None:
        pytest.skip(NO_COMFYUI)
    return use_comfyui()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the tiny random files: ``diffusion_models/random-v1.2.safetensors`` and so on."""
    folder = tmp_path_factory.mktemp("models")
    random_weights.main(folder)
    return folder


@pytest.fixture(scope="session")
def executor(comfy: Path, tiny_models: Path) -> Iterator[Executor]:
    """ComfyUI's executor in this process; it sees the pack's nodes and the tiny models."""
    show_models(tiny_models)
    executor = Executor()
    yield executor
    executor.close()


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[TestServer]:
    """The one server of the session. Tests take ``server`` instead, which also checks the log after each of them."""
    if comfyui_root() is None:
        pytest.skip(NO_COMFYUI)
    from support.server import TestServer

    server = TestServer(tmp_path_factory.mktemp("comfyui"), tiny_models)
    server.start()
    try:
        yield server
    finally:
        code = server.stop()
    assert code == 0, f"ComfyUI ended with exit code {code}\n{server.tail()}"


@pytest.fixture
def server(running_server: TestServer) -> Iterator[TestServer]:
    """A real headless ComfyUI with the pack and the tiny models; a traceback in its log fails the test."""
    running_server.forgive_log()
    yield running_server
    running_server.check_log()


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    """A second ComfyUI, as a newcomer has it: a clone in ``custom_nodes`` and nothing else, and the newest page."""
    if comfyui_root() is None:
        pytest.skip(NO_COMFYUI)
    from opensora.devtools.page import FOLDER
    from support.server import BareServer

    server = BareServer(tmp_path_factory.mktemp("bare"), FOLDER if FOLDER.is_dir() else None)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def object_info(running_server: TestServer) -> dict[str, Any]:
    """What the server tells of all its nodes, asked once."""
    return running_server.object_info()


@pytest.fixture
def browser(server: TestServer, _a_browser: None) -> Browser:
    """A headless browser on the server's page; skipped with the reason where there is none."""
    from support.browser import Browser

    return Browser(server.url)


@pytest.fixture(scope="session")
def newest_browser(_a_browser: None, bare_server: BareServer) -> Browser:
    """A headless browser on the newest page, which the bare server has."""
    from support.browser import Browser

    return Browser(bare_server.url)


@pytest.fixture(scope="session")
def _a_browser() -> None:
    from support.browser import why_not

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With more of PyTorch's threads rounding differs from run to run, and an optimiser enlarges it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
