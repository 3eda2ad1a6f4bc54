"""A worker with a tiny network, and faults to be had on demand: what a helper of rank 0 runs in tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import parallel_cases as cases

STDiT3, STACK_HOOK = cases.STDiT3, cases.STACK_HOOK
from opensora.opensora_models.parallel.pieces import WRITING, SharedDecoding  # noqa: E402
from opensora.opensora_models.parallel.ranks import _Nccl  # noqa: E402
from opensora.opensora_models.parallel.stack import Crew, Hook, shared_stdit3  # noqa: E402
from opensora.opensora_models.parallel.worker import serve_pipes  # noqa: E402
from opensora.opensora_models.parallel.workers import ANSWERING, started  # noqa: E402

from .vaes import tiny12  # noqa: E402

CASE = cases.Case(cases.V12, ranks=3)
AT = 5
"""The attention call in which faults happen: one in the middle of the blocks."""


class Interrupted(BaseException):
    """As if somebody had pressed Cancel."""


def out_of_memory() -> None:
    """As a device raises it."""
    raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nSee the manual.")


def broken() -> None:
    """An error of the network."""
    raise ValueError("This block does not like you.")


def interrupted() -> None:
    """On rank 0."""
    raise Interrupted


FAULTS: dict[str, Callable[[], Any]] = {
    "memory": out_of_memory,
    "error": broken,
    "interrupt": interrupted,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "stuck": lambda: time.sleep(60),
    "slow": lambda: time.sleep(1.5),
    "busy": lambda: time.sleep(2.5 * ANSWERING),
    "": lambda: None,
}


class Deaf:
    """A group of GPUs whose exchanges end when they are told to, and not because others have left."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def _set_default_timeout(self, seconds: Any) -> None:
        """As long as it likes."""

    def alltoall_base(self, *args: Any) -> Deaf:
        """What is waited for."""
        return self

    def wait(self) -> None:
        """Without an end."""
        self.aborted.wait()
        raise RuntimeError("aborted")

    def abort(self) -> None:
        """End what is under way."""
        self.aborted.set()


class TinyTask:
    """A tiny 1.2 whose weights are multiplied by ``settings["strength"]``, as a patch would do it.

    ``settings["faults"]`` happen while it is loaded: by the ``rank`` that loads it, as a text.
    """

    def __init__(self, settings: Mapping[str, Any], rank: int = 0) -> None:
        assert isinstance(CASE.config, cases.STDiT3Config)
        FAULTS[settings.get("faults", {}).get(str(rank), "")]()
        self.config = CASE.config
        self.network = cases.filled(STDiT3(self.config, **{**cases.EXACT, "attention": self.attention}))
        with torch.no_grad():
            for block in self.network.spatial_blocks:  # type: ignore[union-attr]
                block.mlp.fc2.weight.mul_(settings["strength"])
        self.fingerprint = f"tiny, {settings['strength']}"
        self.fault, self.calls = "", 0
        self.vae = tiny12()

    def attention(self, *args: Any, **options: Any) -> Tensor:
        """The exact one, with the fault of the call."""
        self.calls += 1
        if self.fault and self.calls == AT:
            FAULTS[self.fault]()
        return cases.query_by_query(*args, **options)

    def ready(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """It is, but for the faults of ``unready``: by the rank, as a text."""
        FAULTS[inputs.get("unready", {}).get(str(crew.everybody.rank), "")]()

    def hook(self, crew: Crew) -> Hook:
        """Around the blocks, the same on every rank."""
        grid = (-(-CASE.latents[1] // 2), -(-CASE.latents[2] // 2))
        return shared_stdit3(crew, self.config, CASE.latents[0], grid)

    def compute(self, crew: Crew | None, inputs: Mapping[str, Any]) -> Tensor:
        """One call; ``fault`` and ``who`` say what happens to which rank. Without a crew it is computed alone."""
        if "deaf" in inputs and crew is not None:
            self.wait_deaf(crew, inputs["deaf"])
        if "latents" in inputs:
            return self.decode(crew, inputs["latents"])
        inputs = dict(inputs)
        fault, who = inputs.pop("fault", ""), inputs.pop("who", 0)
        inputs.pop("unready", None)
        rank = crew.everybody.rank if crew else 0
        self.fault, self.calls = fault if rank == who else "", 0
        options = {} if crew is None else {STACK_HOOK: self.hook(crew)}
        with torch.no_grad():
            return self.network(**inputs, transformer_options=options)

    def wait_deaf(self, crew: Crew, mark: str) -> None:
        """Wait for rank 0 as a helper of a decode does, from card to card; a file tells when."""
        ranks = crew.everybody
        ranks.group, kept = _Nccl(Deaf()), ranks.group  # which stays connected
        with ranks.patient(WRITING):
            Path(mark).touch()
            ranks.exchange([torch.empty(0)] * ranks.size, [(0,)] * ranks.size)
        del kept

    def decode(
        self, crew: Crew | None, latents: Tensor, between: Callable[[int, int], None] = lambda done, of: None
    ) -> Tensor:
        """A clip by all; rank 0 has it in the end. Without a crew it is decoded alone."""
        with torch.no_grad():
            if crew is None:
                return self.vae.decode(latents)
            sharing = SharedDecoding(crew.everybody, len(latents))
            if crew.everybody.rank == 0:
                return torch.cat(list(self.vae.decoded(latents, helped=sharing.helped, between=between)), dim=2)
            layout, compute = self.vae.decoding(latents)
            sharing.help(layout, compute, layout.pieces)
            return latents


def program(rank: int) -> list[str]:
    """What a process runs that is to be a worker: :func:`main`."""
    tests = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {tests!r}); from support.parallel_worker import main; main({rank})"
    return [sys.executable, "-c", code]


def start(rank: int) -> subprocess.Popen[bytes]:
    """A worker."""
    return started(program(rank))


def main(rank: int) -> None:
    """Be a worker."""
    torch.set_num_threads(1)
    serve_pipes(lambda settings: TinyTask(settings, rank))
