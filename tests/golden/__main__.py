"""``python -m tests.golden FOLDER``: run every recorded case of a folder and print one line per case."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from devtools import option_types as option

TESTS = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit status 0 only if no implemented case failed and at least one case was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=option.folder, help="folder with .safetensors cases and .json tables")
    folder: Path = parser.parse_args().folder

    # `python -m` puts the repository root first, where `nodes/` would hide ComfyUI's nodes.py.
    sys.path[0] = str(TESTS)
    from golden import families
    from golden.runner import case_files, run_file
    from support.pack import load_pack

    load_pack()
    families.register_all()

    passed = failed = missing = 0
    for path in case_files(folder):
        for result in run_file(path):
            if result.worst is None:
                missing += 1
                print(f"----      {result.name}  {result.detail}")
                continue
            passed += result.passed
            failed += not result.passed
            print(f"{'ok  ' if result.passed else 'FAIL'} {result.worst:4.2f} {result.name}  {result.detail}")
    if passed + failed + missing == 0:
        parser.error(f"no .safetensors or .json case below {folder}")
    print(f"{passed} passed, {failed} failed, {missing} not implemented")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
