"""Processes that exchange tensors, and what each of them sent.

A group is made by its members alone, from a store they share; PyTorch's default group is left alone, since it belongs
to whoever else lives in the process. Everything stays on this machine unless another host is named: gloo binds to the
loopback and takes tensors through the computer's memory. NCCL, where every rank has a GPU, takes them from card to
card.

NCCL has never been tried: nobody had two GPUs here. So it is tried out wherever ranks meet (:meth:`Ranks.try_out`), and
whoever uses it goes on by gloo where that fails (:mod:`.workers`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from math import prod
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]

LOOPBACK = "127.0.0.1"

PATIENCE = 8.0
"""Seconds the others are waited for in an exchange, besides those for their own work."""

SLOWER = 4.0
"""How much longer than this rank another may work between two exchanges; they have equal shares."""


class RankLost(RuntimeError):
    """Another rank is gone, hangs, or could not be understood; the group is of no use any more."""


@dataclass
class Clock:
    """When this process last left an exchange."""

    left: float = field(default_factory=time.monotonic)

    def since(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.left

    def restart(self) -> None:
        """It leaves one now, or begins to work."""
        self.left = time.monotonic()


@dataclass
class Ranks:
    """The members of a group as seen by one of them: number ``rank`` of ``size``.

    ``sent`` counts the bytes this rank sent to others, ``exchanges`` the calls. ``group`` is a ``ProcessGroup`` or
    None for a single rank. Whoever does not answer for ``patience`` seconds, or ``slower`` times as long as this
    rank has worked since the last exchange of any group, is lost.
    """

    group: Any
    rank: int
    size: int
    sent: int = 0
    exchanges: int = 0
    patience: float = PATIENCE
    slower: float = SLOWER
    clock: Clock = field(default_factory=lambda: Clock())
    place: torch.device = torch.device("cpu")
    """Where tensors have to be to travel."""

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """One all-to-all: ``parts[r]`` goes to rank r, and what comes from rank r has ``shapes[r]``.

        All tensors have one dtype and device; the own part is handed back as it is. Raises :class:`RankLost`.
        """
        if self.size == 1:
            return [parts[0]]
        like = parts[self.rank]
        away = [part.reshape(-1) if rank != self.rank else part.new_empty(0) for rank, part in enumerate(parts)]
        sending = torch.cat(away).to(self.place)
        counts = [0 if rank == self.rank else prod(shape) for rank, shape in enumerate(shapes)]
        received = torch.empty(sum(counts), dtype=like.dtype, device=self.place)
        self._all_to_all(received, sending, counts, [part.numel() for part in away])
        self.sent += sending.numel() * sending.element_size()
        self.exchanges += 1
        pieces = _pieces(received.to(like.device), counts, shapes, self.rank)
        arrived = [flat.view(*shape) for flat, shape in pieces]
        arrived.insert(self.rank, like)
        return arrived

    def try_out(self) -> None:
        """Send every rank a number and look at what arrives. Raises :class:`RankLost`, here or at another rank."""
        sent = [torch.tensor([self.rank, rank], device=self.place) for rank in range(self.size)]
        arrived = self.exchange(sent, [(2,)] * self.size)
        if [part.tolist() for part in arrived] != [[rank, self.rank] for rank in range(self.size)]:
            raise RankLost(f"Rank {self.rank} of {self.size} was sent other numbers than the ones that left.")

    @contextmanager
    def patient(self, seconds: float | None = None, slower: float = SLOWER) -> Iterator[None]:
        """The others are waited for so long in exchanges inside, ``seconds`` being as ever where none are given."""
        before = self.patience, self.slower
        self.patience, self.slower = self.patience if seconds is None else seconds, slower
        try:
            yield
        finally:
            self.patience, self.slower = before

    def leave(self) -> None:
        """Close the connections, so that nobody waits for this rank, and it for nobody; from any thread."""
        group, self.group = self.group, None
        if isinstance(group, _Nccl):
            group.abort()
        del group  # the last reference; a gloo group closes nothing when told to abort

    def _all_to_all(self, received: Tensor, sending: Tensor, to_me: list[int], from_me: list[int]) -> None:
        width = sending.element_size()  # as bytes, so that every dtype travels
        counts = [[count * width for count in each] for each in (to_me, from_me)]
        from torch.distributed import AllToAllOptions

        settle(self.place)  # before the clock is read: a GPU that is behind has not worked yet
        group = self.group  # another thread may take it away
        if group is None:
            raise RankLost(f"Rank {self.rank} of {self.size} has left the others.")
        options = AllToAllOptions()
        options.timeout = timedelta(seconds=self.patience + self.slower * self.clock.since())
        try:
            group.alltoall_base(received.view(torch.uint8), sending.view(torch.uint8), *counts, options).wait()
        except RuntimeError as error:
            raise RankLost(f"Rank {self.rank} of {self.size} lost another rank while exchanging tokens.") from error
        finally:
            del group  # an error that is looked at keeps what this frame holds, and then nothing would be closed
        self.clock.restart()


def settle(place: torch.device) -> None:
    """Wait until a GPU has done what it was given, which this process only hands over."""
    if place.type == "cuda":
        torch.cuda.current_stream(place).synchronize()


def _pieces(flat: Tensor, counts: Sequence[int], shapes: Sequence[Shape], rank: int) -> list[tuple[Tensor, Shape]]:
    pieces = zip(flat.split(list(counts)), shapes, strict=True)
    return [piece for number, piece in enumerate(pieces) if number != rank]


def alone() -> Ranks:
    """A group of one."""
    return Ranks(None, 0, 1)


class _Nccl:
    """NCCL's group with the timeout of one exchange, as gloo's has it."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def alltoall_base(
        self, received: Tensor, sending: Tensor, to_me: list[int], from_me: list[int], options: Any
    ) -> Any:
        self._group._set_default_timeout(options.timeout)  # its own options are not looked at
        return self._group.alltoall_base(received, sending, to_me, from_me, options)

    def abort(self) -> None:
        """End what is under way."""
        with suppress(RuntimeError):  # it may have done so itself
            self._group.abort()


BLOCKING = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ENABLE_MONITORING": "0"}
"""How PyTorch is told, when a group is made, that a wait ends with an exception; left alone it ends the process."""


def direct_ranks(
    store: Any, rank: int, size: int, seconds: float, patience: float = PATIENCE, host: str = LOOPBACK
) -> Ranks:
    """Ranks with a GPU each that talk by NCCL, which finds its own ways; arguments as in :func:`loopback_ranks`.

    Never tried on a GPU. Raises :class:`RankLost` where there is no NCCL, and where the members do not come together.
    """
    if size == 1:
        return alone()
    before = {name: os.environ.get(name) for name in BLOCKING}
    os.environ.update(BLOCKING)
    try:
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=seconds)
        group = _Nccl(ProcessGroupNCCL(store, rank, size, options))
        place = torch.device("cuda", torch.cuda.current_device())
        return Ranks(group, rank, size, patience=patience, place=place)
    except (ImportError, RuntimeError, ValueError, AssertionError) as error:  # no NCCL, no GPU, no CUDA
        raise RankLost(f"Rank {rank} of {size} has no NCCL: {error}") from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def loopback_ranks(
    store: Any, rank: int, size: int, seconds: float, patience: float = PATIENCE, host: str = LOOPBACK
) -> Ranks:
    """Ranks that talk by gloo, through the computer's memory: over the loopback, or by the address ``host``.

    ``store`` is one of ``torch.distributed``'s, shared by the members and by nobody else; ``seconds`` is how long the
    members wait for one another here before :class:`RankLost` is raised, ``patience`` how long in an exchange.
    """
    if size == 1:
        return alone()
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=seconds)
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    try:
        return Ranks(ProcessGroupGloo(store, rank, size, options), rank, size, patience=patience)
    except RuntimeError as error:
        raise RankLost(f"Rank {rank} of {size} waited {seconds:g} s for the others in vain.") from error
