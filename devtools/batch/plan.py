"""From a workflow and a table to rows in a ledger: all that is wrong is found here, before anything is queued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..client import Prompt
from .inputs import Planned, Target, filled, find_targets, plan_rows, read_workflow
from .ledger import Entry, Ledger
from .naming import name_rows, template_of
from .order import Group, Grouping
from .outputs import Present
from .table import Fault, Table, read_table
from .work import Job, SentFile

FEW = 3
ELSEWHERE = "give the row another name with --name, or write into another folder with --out."


class BadRows(Exception):
    """All that is wrong with a table, in the order of its lines."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(map(str, self.faults)))


@dataclass
class Plan:
    """Every row by its name, and what is needed to make jobs of them."""

    workflow: Prompt
    targets: dict[str, Target]
    rows: dict[str, Planned]
    entries: list[Entry]
    source: str  # names of workflow and table, for the settings inside the results

    def groups(self) -> dict[str, Group]:
        """The group of every row, see :mod:`.order`."""
        grouping = Grouping(self.workflow, self.targets)
        return {name: grouping.of(planned.values) for name, planned in self.rows.items()}

    def job(self, name: str, prompt_id: str) -> Job:
        """The job of a row."""
        planned = self.rows[name]
        row = planned.row
        settings = {
            "key": self._key(name),
            "name": name,
            "row": row.number,
            "line": row.line,
            "source": self.source,
            "values": row.values,
        }
        return Job(name, prompt_id, filled(self.workflow, self.targets, planned.values), settings, _files(planned))

    def _key(self, name: str) -> str:
        return row_key(self.workflow, self.targets, self.rows[name])


def make_plan(workflow_path: Path, table_path: Path, name: str, object_info: Mapping[str, Any]) -> Plan:
    """Read both files and check every row; BadRows with everything that is wrong, Problem for the workflow's faults."""
    template = template_of(name)
    workflow = read_workflow(workflow_path)
    table = read_table(table_path)
    planned, faults = plan_rows(workflow, table, table_path.resolve().parent, object_info)
    targets, _ = find_targets(workflow, table.columns)
    as_taken = [replace(plan.row, values={**plan.row.values, **plan.values}) for plan in planned]  # 7, not "7"
    names, wrong = name_rows(template, as_taken, _defaults(workflow, targets, table))
    if faults or wrong:
        raise BadRows([*faults, *wrong])
    rows = dict(zip(names, planned, strict=True))
    return Plan(workflow, targets, rows, _entries(workflow, targets, rows), f"{workflow_path.name}, {table_path.name}")


def _entries(workflow: Prompt, targets: Mapping[str, Target], rows: Mapping[str, Planned]) -> list[Entry]:
    entries, faults = [], []
    for name, plan in rows.items():
        try:
            entries.append(Entry(name, row_key(workflow, targets, plan), plan.row.number, plan.row.line))
        except OSError as error:
            faults.append(Fault(plan.row.line, f"{error.filename} cannot be read: {error.strerror}."))
    if faults:
        raise BadRows(faults)
    return entries


def _defaults(workflow: Prompt, targets: Mapping[str, Target], table: Table) -> dict[str, Any]:
    """What fields of a name hold where the table has no value: the workflow's own."""
    found = {column: target.default for column, target in targets.items()}
    for column in ("prompt", "seed"):
        if column not in table.columns:
            target, _ = find_targets(workflow, {column: 0})
            found.update({name: each.default for name, each in target.items()})
    return found


def enter(ledger: Ledger, plan: Plan) -> int:
    """Write the rows into the ledger; gives how many finished ones lost their files and wait again.

    BadRows where a finished result, or somebody's file, has the name of a row with other settings.
    """
    present = Present(ledger.out)
    done = {entry.name: entry for entry in ledger.entries("done") if entry.name in plan.rows}
    foreign = [
        Fault(entry.line, f"{ledger.out / file} is there already, and not made by this row; {ELSEWHERE}")
        for entry in plan.entries
        if entry.name not in done
        for file in present.called(entry.name)[:1]
        if not present.is_result(file, entry.key)
    ]
    if foreign:
        raise BadRows(foreign)
    lost = [name for name, entry in done.items() if not all(present.has(output.final) for output in entry.outputs)]
    ledger.forget(lost)
    differ = ledger.plan(plan.entries)
    if differ:
        raise BadRows(_changed(plan, differ, len(done) - len(lost)))
    return len(lost)


def _changed(plan: Plan, differ: Sequence[Entry], done: int) -> list[Fault]:
    """What to say of finished rows whose settings are others now."""
    lines = {entry.name: entry.line for entry in plan.entries}
    now = {entry.key: entry.line for entry in plan.entries}
    moved = [entry for entry in differ if entry.key in now]
    if len(differ) == done > FEW and not moved:  # one sentence for all
        what = "the workflow, or a whole column, was changed"
        return [Fault(0, f"all {done} finished rows have other settings now: {what}; {ELSEWHERE}")]
    return [
        Fault(
            lines[entry.name],
            f"{entry.name!r} is finished already, with other settings"
            + (f", those of line {now[entry.key]}: add new rows at the end; or " if entry in moved else "; ")
            + ELSEWHERE,
        )
        for entry in differ
    ]


def row_key(workflow: Prompt, targets: Mapping[str, Target], planned: Planned) -> str:
    """A fingerprint of everything that is computed for a row: its whole workflow and the bytes of its files."""
    content = [filled(workflow, targets, planned.values), [file.sha256 for file in _files(planned)]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


_known: dict[tuple[str, int, int], str] = {}


def _files(planned: Planned) -> list[SentFile]:
    return [
        SentFile(upload.node, upload.name, upload.path.name, _sha256(upload.path), str(upload.path))
        for upload in planned.uploads
    ]


def _sha256(path: Path) -> str:
    """Of a file's bytes; read once while the file stays the same."""
    stat = path.stat()
    stamp = (str(path), stat.st_size, stat.st_mtime_ns)
    if stamp not in _known:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        _known[stamp] = digest.hexdigest()
    return _known[stamp]
