"""Runs a program that ends when whoever started it does, even by kill -9: ``python leash.py FOLDER PROGRAM ARGUMENT…``.

The starter holds the other end of this process's standard input; when the starter ends, the system closes it. Then the
folder the program wrote into goes as well, because nobody is left who knows of it.
"""

import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

END_SECONDS = 10


def main() -> int:
    """The exit status of the program."""
    folder, *command = sys.argv[1:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    left_alone = threading.Event()

    def pass_on(number: int, _: "FrameType | None") -> None:
        child.send_signal(number)

    def wait_for_the_starter() -> None:
        sys.stdin.buffer.read()
        left_alone.set()
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    threading.Thread(target=wait_for_the_starter, daemon=True).start()
    code = child.wait()
    if left_alone.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
