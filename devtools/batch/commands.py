"""The command line of ``batch.py``."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import option_types as option
from ..console import Problem, say
from .driver import Driver, Ended
from .engines import engine
from .inputs import read_workflow
from .ledger import FOLDER, Ledger, Lock, check_folder, has_ledger, is_driven
from .naming import DEFAULT, template_of
from .outputs import recover
from .plan import BadRows, enter, make_plan
from .progress import Json, Quiet, Teller, Terminal, summary
from .ray_engine import LOCAL
from .servers import PATIENCE_SECONDS
from .table import Fault, read_table

ALL_MADE, NOT_ALL, REFUSED, STOPPED = 0, 1, 2, 130
SHOWN_FAULTS = 200  # of a table; more are counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status for the shell: 0 all rows made, 1 not all, 2 refused, 130 stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shall not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except BadRows as bad:
        return _refused(options, bad.faults)
    except Problem as problem:
        return _refused(options, [Fault(0, str(problem))])
    except OSError as error:
        return _refused(options, [Fault(0, _sentence(error))])
    except KeyboardInterrupt:
        say("batch.py: stopped. The same command continues where it left off.")
        return STOPPED


def _refused(options: argparse.Namespace, faults: Sequence[Fault]) -> int:
    """Tell what is wrong, also as JSON."""
    if getattr(options, "json", False):
        for fault in faults:
            say(json.dumps({"event": "fault", "line": fault.line, "text": fault.text}))
        return REFUSED
    for fault in faults[:SHOWN_FAULTS]:
        say(f"batch.py: {fault}")
    more = len(faults) - SHOWN_FAULTS
    if more > 0:
        say(f"… and {more} more.")
    if options.command is _run:
        say("Nothing was queued.")
    return REFUSED


def _sentence(error: OSError) -> str:
    """What the system says, and of which file."""
    return f"{error.strerror or error} ({error.filename})." if error.filename else f"{error.strerror or error}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="batch.py", description="Makes every row of a table with a workflow.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # Options that take any number of values would take the two files as well, were these not in front of them.
    run = commands.add_parser(
        "run", help="make all rows, or go on with it",
        usage="batch.py run WORKFLOW.json TABLE --out DIR (--servers URL [URL ...] | --ray [ADDRESS]) [OPTION ...]",
    )  # fmt: skip
    run.add_argument("workflow", type=option.path, metavar="WORKFLOW.json", help="in API form: menu File, Export (API)")
    run.add_argument(
        "table", type=option.path, metavar="TABLE", help=".csv, .tsv, .jsonl, or .txt with one prompt a line"
    )
    run.add_argument(
        "--out", type=option.path, required=True, metavar="DIR", help="folder of the results and the ledger"
    )
    run.add_argument(
        "--name", type=option.text, default=DEFAULT, metavar="TEMPLATE", help=f"default {DEFAULT}; or the layout vbench"
    )
    run.add_argument("--check", action="store_true", help="only find bad rows")
    _add_engine(run)
    form = run.add_mutually_exclusive_group()
    form.add_argument("--quiet", action="store_true", help="tell only what went wrong, and the end")
    form.add_argument("--json", action="store_true", help="tell everything as JSON, an object a line")
    run.set_defaults(command=_run)
    status = _on_folder(commands, "status", "how many rows are in which state, and which failed", _status)
    status.add_argument("--json", action="store_true", help="every row as JSON, an object a line")
    retry = _on_folder(commands, "retry", "let failed rows be made again by the next (or the present) run", _retry)
    retry.add_argument("--failed", action="store_true", required=True, help="the rows that failed")
    _on_folder(commands, "cancel", "end a run and give up the rows that are not made", _cancel)
    return parser


def _on_folder(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("out", type=option.path, nargs="?", metavar="DIR", help="folder of the results")
    parser.add_argument("--out", type=option.path, dest="named_out", metavar="DIR", help="the same")
    parser.set_defaults(command=command)
    return parser


def _add_engine(run: argparse.ArgumentParser) -> None:
    workers = run.add_argument_group("workers, one of the two")
    workers.add_argument(
        "--servers", type=option.text, nargs="+", metavar="URL", help="ComfyUI servers that run already"
    )
    workers.add_argument(
        "--ray",
        type=option.text,
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="start ComfyUI on this machine's or a cluster's devices",
    )
    workers.add_argument(
        "--row-seconds", type=option.seconds, default=0.0, metavar="S", help="a row may take so long (0: any time)"
    )
    workers.add_argument(
        "--patience",
        type=option.seconds,
        metavar="S",
        help=f"with --servers: how long one may stay away, default {PATIENCE_SECONDS:.0f}",
    )
    ray = run.add_argument_group("with --ray; paths are the same on every machine")
    known = "default COMFYUI_PATH, or the one around this pack"
    of_ray = [
        ray.add_argument("--workers", type=option.count, metavar="N", help="how many; default one for each GPU"),
        ray.add_argument("--cpu", action="store_true", help="ComfyUI runs without a GPU"),
        ray.add_argument("--comfyui", type=option.path, metavar="PATH", help=known),
        ray.add_argument("--python", type=option.file, metavar="PATH", help="ComfyUI's; default the one of batch.py"),
        ray.add_argument("--base", type=option.folder, metavar="PATH", help="folder with models and custom_nodes"),
        ray.add_argument(
            "--comfyui-argument", type=option.as_given, action="append", default=[], metavar="ARGUMENT",
            help="given to ComfyUI: --comfyui-argument=--fast",
        ),
    ]  # fmt: skip
    run.set_defaults(of_ray=[action.dest for action in of_ray])


def _run(options: argparse.Namespace) -> int:
    teller: Teller = Json() if options.json else Quiet() if options.quiet else Terminal()
    _look_first(options)
    with engine(options) as (workers, object_info):
        plan = make_plan(options.workflow, options.table, options.name, object_info)
        if options.check:
            text = f"{len(plan.rows)} rows, nothing wrong with them."
            say(json.dumps({"event": "note", "text": text}) if options.json else text)
            return ALL_MADE
        lock = Lock(options.out / FOLDER)
        try:
            ledger = Ledger(options.out, make=True)
            try:
                recover(ledger)
                lost = enter(ledger, plan)
                if lost:
                    teller.listen("note", {"text": f"{lost} finished rows have lost their files: they are made again."})
                driver = Driver(ledger, workers, plan.groups(), plan.job, _one_at_a_time(teller))
                ended = driver.run(lambda: teller.tick(ledger.counts, driver.board.members))
                return _end(options, ledger, teller, ended)
            finally:
                ledger.close()
        finally:
            lock.release()


def _look_first(options: argparse.Namespace) -> None:
    """What can be wrong before workers are started, which may take minutes."""
    template_of(options.name)
    read_workflow(options.workflow)
    table = read_table(options.table)
    if table.faults and not table.rows:
        raise BadRows(table.faults)
    check_folder(options.out)
    if has_ledger(options.out):
        Ledger(options.out).close()


def _one_at_a_time(teller: Teller) -> Callable[[str, object], None]:
    guard = threading.Lock()

    def listen(event: str, data: object) -> None:
        with guard:
            teller.listen(event, data)  # type: ignore[arg-type]

    return listen


def _end(options: argparse.Namespace, ledger: Ledger, teller: Teller, ended: Ended) -> int:
    if ended.error is not None:
        if not isinstance(ended.error, (OSError, Problem)):
            raise ended.error
        said = _sentence(ended.error) if isinstance(ended.error, OSError) else str(ended.error)
        teller.listen("note", {"text": f"{said} The same command continues.", "error": said})
    counts = ledger.counts()
    teller.end("stopped" if ended.error else ended.why, counts)
    if ended.why == "interrupted":
        return STOPPED
    if counts["failed"] and not options.json:
        again = f"python batch.py retry --failed {_quoted(options.out)}"
        say(f"Rows that failed are made again by the same command after: {again}")
    return ALL_MADE if counts["done"] == sum(counts.values()) else NOT_ALL


def _quoted(folder: Path) -> str:
    """As it can be typed into a shell."""
    return subprocess.list2cmdline([str(folder)]) if os.name == "nt" else shlex.quote(str(folder))


def _folder(options: argparse.Namespace) -> Path:
    given: Path | None = options.out or options.named_out
    if given is None:
        raise Problem("Name the folder of the results.")
    if options.named_out is not None and options.named_out.resolve() != given.resolve():
        raise Problem(f"Two folders were named, '{given}' and '{options.named_out}'; name one.")
    return given


def _status(options: argparse.Namespace) -> int:
    out = _folder(options)
    ledger = Ledger(out)
    try:
        entries = ledger.entries()
        if options.json:
            for entry in entries:
                files = [output.final for output in entry.outputs]
                fields = {key: value for key, value in vars(entry).items() if key not in ("outputs", "key")}
                say(json.dumps({**fields, "outputs": files}))
            return ALL_MADE
        for entry in entries:
            if entry.state == "failed":
                say(f"line {entry.line}, {entry.name}: {entry.error}")
        seconds = [entry.seconds for entry in entries if entry.state == "done" and entry.seconds is not None]
        mean = f", {sum(seconds) / len(seconds):.1f} s a row" if seconds else ""
        say(f"{summary(ledger.counts())}{mean}; {'a run works on it' if is_driven(out) else 'no run works on it'}")
        return ALL_MADE
    finally:
        ledger.close()


def _retry(options: argparse.Namespace) -> int:
    out = _folder(options)
    ledger = Ledger(out)
    try:
        number = ledger.retry(["failed"])
    finally:
        ledger.close()
    after = "the present run makes them" if is_driven(out) else "the same `run` command makes them"
    say(f"{number} rows wait again; {after}." if number else "No row had failed.")
    return ALL_MADE


def _cancel(options: argparse.Namespace) -> int:
    out = _folder(options)
    ledger = Ledger(out)
    try:
        if is_driven(out):
            ledger.wish("cancel")
            while is_driven(out):
                time.sleep(0.1)
        else:
            ledger.cancel()
        say(summary(ledger.counts()))
        return ALL_MADE
    finally:
        ledger.close()
