"""Runs a program that ends when whoever started it does, even by kill -9: ``python leash.py PROGRAM ARGUMENT…``.

The starter holds the other end of this process's standard input; when the starter ends, the system closes it.
"""

import signal
import subprocess
import sys
import threading
from types import FrameType

END_SECONDS = 10


def main() -> int:
    """The exit status of the program."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def pass_on(number: int, _: "FrameType | None") -> None:
        child.send_signal(number)

    def wait_for_the_starter() -> None:
        sys.stdin.buffer.read()
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    threading.Thread(target=wait_for_the_starter, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
