"""``python -m training COMMAND …`` from the repository root: one entry for every training program."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

PACK_NAME = "opensora"
PACK_ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("autoencoder", "flow", "evaluate", "export", "probe", "joins", "outlines", "kept")


def load_pack() -> None:
    """Import the pack by path as ``opensora``, as ComfyUI does, so that training shares its networks."""
    spec = importlib.util.spec_from_file_location(
        PACK_NAME, PACK_ROOT / "__init__.py", submodule_search_locations=[str(PACK_ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no importable pack at {PACK_ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK_NAME] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Run the command named first; the rest of the line is its own."""
    asked, usage = sys.argv[1:2], f"usage: python -m training {{{','.join(COMMANDS)}}} … (each has --help)\n"
    if asked in (["-h"], ["--help"]):
        sys.stdout.write(usage)
        return 0
    if not asked or asked[0] not in COMMANDS:
        sys.stderr.write(usage)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    load_pack()
    refused = importlib.import_module(f"{PACK_NAME}.training.refused").Refused
    try:
        importlib.import_module(f"{PACK_NAME}.training.{asked[0]}").main(sys.argv[2:])
    except refused as error:
        sys.stderr.write(f"python -m training {asked[0]}: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
