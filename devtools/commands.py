"""The command line of ``dev.py``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from . import option_types as option
from .checks import run_compatibility, run_tests, run_translation_tests
from .comfyui import RELEASES
from .console import Problem, say
from .demo import make_server, run_demo
from .places import REPOSITORY
from .runtime import Runtime, prepare
from .server import free_port, port_is_free
from .translations import copy_english_pages

USUAL_PORT = 8188  # ComfyUI's own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status for the shell."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        where = "; what is meant for pytest or ComfyUI stands after --" if options.command in (_test, _serve) else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{where}")
    try:
        return int(options.command(options))
    except Problem as problem:
        say(f"dev.py: {problem}")
        return 2
    except KeyboardInterrupt:
        say("dev.py: stopped. The same command continues where it left off.")
        return 130
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            say(f"dev.py: the disk is full ({error.filename or REPOSITORY}). Free some space and run it again.")
            return 2
        raise


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--comfyui", type=option.path, metavar="PATH", help="a ComfyUI you already have (or set COMFYUI_PATH)"
    )
    common.add_argument("--comfyui-version", choices=sorted(RELEASES, reverse=True), help="make and use this ComfyUI")
    parser = argparse.ArgumentParser(
        prog="dev.py", description="Sets itself up below .comfyui/ (needs about 7 GB on Linux), then runs a command."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", parents=[common], help="make four videos with the tiny models of 1.3 and 2.0")
    demo.add_argument("--prompt", type=option.text, metavar="TEXT", help="what the videos made from words shall show")
    demo.set_defaults(command=_demo)

    test = commands.add_parser("test", parents=[common], help="lint, types and all tests")
    test.add_argument("--compat", action="store_true", help="only: import and validate on the older ComfyUI versions")
    test.add_argument(
        "pytest", type=option.as_given, nargs="*", metavar="PYTEST_ARGUMENT", help="given to pytest (after --)"
    )
    test.set_defaults(command=_test)

    translations = commands.add_parser(
        "translations", parents=[common], help="copy changed English help pages, list what other languages lack"
    )
    translations.set_defaults(command=_translations)

    serve = commands.add_parser("serve", parents=[common], help="start ComfyUI with the pack and open its address")
    serve.add_argument("--port", type=option.port, help=f"default: {USUAL_PORT}, or a free one if that is taken")
    serve.add_argument(
        "arguments", type=option.as_given, nargs="*", metavar="COMFYUI_ARGUMENT", help="given to ComfyUI (after --)"
    )
    serve.set_defaults(command=_serve)

    bench = commands.add_parser("bench", parents=[common], help="run the benchmarks")
    bench.add_argument("names", type=option.text, nargs="*", metavar="NAME", help="only these, for example: stdit3")
    bench.set_defaults(command=_bench)

    golden = commands.add_parser("golden", parents=[common], help="compare with recorded tensors of the original")
    golden.add_argument("folder", type=option.folder, metavar="FOLDER", help="folder of recorded cases")
    golden.set_defaults(command=_golden)
    return parser


def _runtime(options: argparse.Namespace) -> Runtime:
    return prepare(options.comfyui, options.comfyui_version)


def _demo(options: argparse.Namespace) -> int:
    run_demo(_runtime(options), options.prompt)
    return 0


def _test(options: argparse.Namespace) -> int:
    if not options.compat:
        return run_tests(_runtime(options), options.pytest)
    if options.comfyui or options.comfyui_version:
        raise Problem("--compat makes the older ComfyUI versions and tests on all of them; name no other.")
    return run_compatibility(options.pytest)


def _translations(options: argparse.Namespace) -> int:
    runtime = _runtime(options)
    say(f"English help pages copied: {', '.join(copy_english_pages()) or 'none had changed'}")
    return run_translation_tests(runtime)


def _serve(options: argparse.Namespace) -> int:
    if any(argument.split("=")[0] == "--port" for argument in options.arguments):
        raise Problem("The port is waited for and told here: write --port before the --.")
    runtime = _runtime(options)
    port = options.port or (USUAL_PORT if port_is_free(USUAL_PORT) else free_port())
    server = make_server(runtime, port, options.arguments)
    say(f"Starting ComfyUI {runtime.version}; its log is {server.log_path}")
    with server:
        say(f"\nComfyUI with Open-Sora: {server.url}   (Ctrl-C ends it)")
        try:
            while server.running():
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
        raise Problem(f"ComfyUI ended by itself.\n{server.tail()}")


def _bench(options: argparse.Namespace) -> int:
    scripts = sorted(path for path in (REPOSITORY / "benchmarks").glob("*.py") if not path.name.startswith("_"))
    unknown = sorted(set(options.names) - {path.stem for path in scripts})
    if unknown:
        raise Problem(f"No benchmark {', '.join(unknown)}; there are: {', '.join(path.stem for path in scripts)}.")
    python = _runtime(options).python
    codes = []
    for path in scripts:
        if not options.names or path.stem in options.names:
            say(f"\n== {path.stem}")
            codes.append(subprocess.run([str(python), str(path)], cwd=REPOSITORY).returncode)
    return 1 if any(codes) else 0


def _golden(options: argparse.Namespace) -> int:
    command = [str(_runtime(options).python), "-m", "tests.golden", str(options.folder.resolve())]
    return subprocess.run(command, cwd=REPOSITORY).returncode


if __name__ == "__main__":
    sys.exit(main())
