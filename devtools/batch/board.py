"""Who makes what, and what a failure says: about the row, or about the worker.

* A worker that fails three rows in a row is set aside, and those rows are given to another one.
* A row that failed at one worker and fails at a second is at fault itself; the failure is not held against the second,
  and a worker that was set aside for such rows alone comes back.
* A row whose worker ended while making it is made again, elsewhere if there is an elsewhere; after three such deaths it
  counts as failed, so that a row that kills its workers does not kill them all.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .ledger import Entry, Ledger, Output
from .order import Group, Order
from .outputs import rename_parts

STRIKES = 3  # rows in a row that a worker may fail
DEATHS = 3  # workers that may end while making a row
LOOK_SECONDS = 1.0  # how often a worker without a row looks whether the run ends


@dataclass
class Member:
    """What is known of a worker."""

    name: str
    row: str | None = None
    made: int = 0
    strikes: list[str] = field(default_factory=list)
    why: str = ""  # what the last strike was for
    aside: str | None = None  # why it gets no rows; None where it gets some
    suspects: set[str] | None = None  # set aside for these rows alone

    @property
    def active(self) -> bool:
        return self.aside is None


Listener = Callable[[str, Mapping[str, object]], None]


class Board:
    """The rows that wait, the workers, and the ledger behind them. Every method may be called from any thread."""

    def __init__(self, ledger: Ledger, workers: Sequence[str], groups: Mapping[str, Group], listener: Listener) -> None:
        """``groups`` holds the group of every row; ``listener`` hears ``row`` and ``worker`` events."""
        self.ledger = ledger
        self.members = {name: Member(name) for name in workers}
        self.stopping = False
        self._groups, self._listener = groups, listener
        self._order = Order()
        self._failed_at: dict[str, set[str]] = {}
        self._inherited: dict[str, list[Entry]] = {}
        self._changed = threading.Condition(threading.RLock())
        for entry in ledger.entries("running"):
            if entry.worker in self.members and entry.prompt_id:
                self._inherited.setdefault(entry.worker, []).append(entry)
            else:
                ledger.give_back(entry.name)
        self._taken_in: set[str] = set()
        self.take_in()

    def take_in(self) -> None:
        """Rows that wait in the ledger and not here: at the start, and after ``retry`` in another process."""
        with self._changed:
            busy = {member.row for member in self.members.values()}
            for entry in self.ledger.entries("waiting"):
                if entry.name not in self._taken_in and entry.name not in busy and entry.name in self._groups:
                    self._failed_at.pop(entry.name, None)  # whoever asks for it again wants it judged anew
                    self._put(entry.name)
            self._changed.notify_all()

    def _put(self, name: str, first: bool = False) -> None:
        self._taken_in.add(name)
        self._order.add(name, self._groups[name], first)

    # ---- taking ----

    def take(self, worker: str) -> tuple[str, str] | None:
        """The next row of this worker and what it is to be called there; None when the run ends for it."""
        member = self.members[worker]
        with self._changed:
            while not self._is_over():
                if member.active:
                    taken = self._next(member)
                    if taken is not None:
                        return taken
                self._changed.wait(LOOK_SECONDS)
            return None

    def _next(self, member: Member) -> tuple[str, str] | None:
        inherited = self._inherited.get(member.name)
        if inherited:  # under way there when the driver before this one ended
            entry = inherited.pop()
            member.row = entry.name
            return entry.name, str(entry.prompt_id)
        name = self._order.take(member.name, self._avoided())
        if name is None:
            return None
        self._taken_in.discard(name)
        prompt_id = str(uuid.uuid4())
        self.ledger.start(name, member.name, prompt_id)
        member.row = name
        return name, prompt_id

    def _avoided(self) -> dict[str, set[str]]:
        """Rows and the workers that failed at them, where another one is left that did not."""
        if not self._failed_at:
            return {}
        active = {name for name, member in self.members.items() if member.active}
        return {name: tried for name, tried in self._failed_at.items() if active - tried}

    def _is_over(self) -> bool:
        under_way = any(member.row for member in self.members.values())
        if self.stopping or not any(member.active for member in self.members.values()):
            return self.stopping or not under_way
        return not len(self._order) and not under_way and not any(self._inherited.values())

    # ---- what became of a row ----

    def save(self, worker: str, name: str, seconds: float, outputs: Sequence[Output]) -> None:
        """The row's files are written; they get their names, and the row is done."""
        with self._changed:
            self.ledger.save(name, seconds, outputs)
        rename_parts(self.ledger.out, outputs)
        with self._changed:
            self.ledger.finish(name)
            member = self.members[worker]
            member.row, member.made = None, member.made + 1
            member.strikes.clear()
            for suspect in self._accusers(name):  # the row is good: the worker was at fault
                suspect.suspects = None
            self._failed_at.pop(name, None)
            self._tell("row", name=name, state="done", worker=worker, seconds=round(seconds, 3))

    def fail(self, worker: str, name: str, error: str, seconds: float) -> None:
        """The worker says that the row cannot be made."""
        with self._changed:
            member = self.members[worker]
            member.row = None
            self.ledger.fail(name, error, seconds)
            self._tell("row", name=name, state="failed", worker=worker, seconds=round(seconds, 3), error=error)
            before = self._failed_at.setdefault(name, set())
            elsewhere = before - {worker}
            before.add(worker)
            if elsewhere:
                self._acquit(name)
            else:
                self._strike(member, name, f"it failed {STRIKES} rows in a row, the last with: {error}")

    def lose(self, worker: str, name: str, error: str, began: bool = True) -> None:
        """The worker ended while it made the row, or (``began`` is False) before it could begin."""
        with self._changed:
            member = self.members[worker]
            member.row = None
            self.ledger.give_back(name, died=began, error=error if began else None)
            deaths = self.ledger.entry(name).deaths
            self._failed_at.setdefault(name, set()).add(worker)
            if deaths >= DEATHS:
                text = f"its worker ended {deaths} times while making it, the last time: {error}"
                self.ledger.fail(name, text)
                self._tell("row", name=name, state="failed", worker=worker, error=text)
            else:
                self._put(name, first=True)
                self._tell("row", name=name, state="waiting", worker=worker, error=error)
            if deaths == 1 or not began:
                self._strike(member, name, f"it ended {STRIKES} times in a row, the last time: {error}")

    def give_back(self, worker: str, name: str) -> None:
        """The row is not to be made now; nobody is at fault."""
        with self._changed:
            self.members[worker].row = None
            self.ledger.give_back(name)
            self._changed.notify_all()

    def set_aside(self, worker: str, why: str) -> None:
        """The worker gets no more rows."""
        with self._changed:
            member = self.members[worker]
            if member.active:
                member.aside = why
                self._order.leave(worker)
                for entry in self._inherited.pop(worker, []):
                    self.ledger.give_back(entry.name)
                    self._put(entry.name)
                self._tell("worker", name=worker, state="aside", error=why)

    def stop(self) -> None:
        """No more rows are given out; threads that wait for one end."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    # ---- judging ----

    def _strike(self, member: Member, name: str, why: str) -> None:
        member.strikes.append(name)
        member.why = why
        self._judge(member)

    def _judge(self, member: Member) -> None:
        others = [other for other in self.members.values() if other is not member]
        is_last = not any(other.active for other in others)
        if len(member.strikes) < STRIKES or (is_last and any(other.suspects for other in others)):
            return  # in the second case this one tries the rows of another first, which may come back for it
        rows, member.strikes = member.strikes, []
        self.set_aside(member.name, member.why)
        if not is_last:
            failed = [row for row in rows if self.ledger.entry(row).state == "failed"]
            member.suspects = set(failed) or None
            for row in failed:
                self.ledger.give_back(row, error=self.ledger.entry(row).error)
                self._put(row, first=True)  # who is at fault shall be known soon
            self._changed.notify_all()

    def _accusers(self, name: str) -> list[Member]:
        return [member for member in self.members.values() if member.suspects and name in member.suspects]

    def _acquit(self, name: str) -> None:
        """Another worker failed at the row as well: it does not count against the first."""
        for member in self._accusers(name):
            assert member.suspects is not None
            member.suspects.discard(name)
            if not member.suspects:
                member.suspects, member.aside = None, None
                self._tell("worker", name=member.name, state="back")
        for member in self.members.values():
            if member.active:
                self._judge(member)

    def _tell(self, event: str, **data: object) -> None:
        self._changed.notify_all()
        self._listener(event, data)
