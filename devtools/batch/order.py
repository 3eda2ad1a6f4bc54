"""Which row comes next: rows that share models and prompts are put together, and each worker stays with its own.

ComfyUI keeps the results of the nodes whose inputs did not change since the last prompt. How much is made anew when a
column changes is therefore the number of nodes behind its input: nearly all behind a loader, a few behind a seed.
Rows are grouped by all columns but the cheapest ones; groups that also share the dearest columns follow one another.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ..client import Prompt
from .inputs import Target

MANY = 100  # kinds of dear values; among more than these the longest is not looked for
Group = tuple[str, str]  # what is dear (models), and all but what is cheap (models and prompts)


def nodes_behind(workflow: Prompt, node: str) -> int:
    """How many nodes run again when an input of ``node`` changes, itself included."""
    users: dict[str, list[str]] = {}
    for key, content in workflow.items():
        for value in content["inputs"].values():
            if isinstance(value, list) and value:
                users.setdefault(str(value[0]), []).append(key)
    reached: set[str] = set()
    waiting = [node]
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            waiting += users.get(key, [])
    return len(reached)


class Grouping:
    """Tells the group of a row."""

    def __init__(self, workflow: Prompt, targets: Mapping[str, Target]) -> None:
        costs = {column: nodes_behind(workflow, target.node) for column, target in targets.items()}
        least, most = min(costs.values(), default=0), max(costs.values(), default=0)
        # With one level only, equal rows are put together: they are answered from ComfyUI's cache.
        self.dear = [column for column in costs if costs[column] == most and least < most]
        self.kept = [column for column in costs if costs[column] > least or least == most]

    def of(self, values: Mapping[str, Any]) -> Group:
        """The group of a row with these values."""
        return _digest(values, self.dear), _digest(values, self.kept)


def _digest(values: Mapping[str, Any], columns: Iterable[str]) -> str:
    """Short, because there may be a million of them."""
    text = json.dumps([values.get(column) for column in columns], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Order:
    """The rows that wait. ``take`` costs the same for ten rows and for a million."""

    def __init__(self) -> None:
        self._rows: dict[Group, deque[str]] = {}
        self._first: deque[tuple[str, Group]] = deque()
        self._free: dict[str, dict[Group, None]] = {}  # by what is dear: groups no worker is at, first come first
        self._at: dict[str, Group] = {}  # the group each worker is at
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, name: str, group: Group, first: bool = False) -> None:
        """A row waits; ``first``: before all others, whatever their group."""
        self._waiting += 1
        if first:
            self._first.append((name, group))
            return
        if group in self._rows:
            self._rows[group].append(name)
            return
        self._rows[group] = deque([name])
        if group not in self._at.values():
            self._free.setdefault(group[0], {})[group] = None

    def take(self, worker: str, avoid: Mapping[str, set[str]] | None = None) -> str | None:
        """The next row for this worker: of its own group, else of a group nobody is at, else of the longest one.

        ``avoid`` names workers by row: a row is not given to one of those that failed at it.
        """
        for name, group in self._first:
            if not avoid or worker not in avoid.get(name, ()):
                self._first.remove((name, group))
                self._taken(worker, group)
                return name
        for group in self._candidates(worker):
            rows = self._rows.get(group)
            for _ in range(len(rows) if rows else 0):
                assert rows is not None
                name = rows.popleft()
                if avoid and worker in avoid.get(name, ()):
                    rows.append(name)
                    continue
                self._taken(worker, group)
                return name
        return None

    def leave(self, worker: str) -> None:
        """The worker takes no more rows; its group is free for others."""
        group = self._at.pop(worker, None)
        if group in self._rows and group not in self._at.values():
            self._free.setdefault(group[0], {})[group] = None

    def _candidates(self, worker: str) -> Iterable[Group]:
        own = self._at.get(worker)
        if own in self._rows:
            yield own
        if own and own[0] in self._free:
            yield from self._free[own[0]]
        dear = self._free if len(self._free) > MANY else sorted(self._free, key=lambda key: -len(self._free[key]))
        for each in dear:
            yield from self._free[each]
        yield from sorted(set(self._at.values()) & set(self._rows), key=lambda group: -len(self._rows[group]))

    def _taken(self, worker: str, group: Group) -> None:
        self._waiting -= 1
        before = self._at.get(worker)
        if before != group:
            self.leave(worker)
            self._at[worker] = group
            free = self._free.get(group[0], {})
            free.pop(group, None)
            if not free:
                self._free.pop(group[0], None)
        if group in self._rows and not self._rows[group]:
            del self._rows[group]
