"""Runs a program that ends when its starter does, even by kill -9: ``python leash.py FOLDER HELD PROGRAM …``.

The starter holds the other end of this process's standard input; when the starter ends, the system closes it. Then the
folder the program wrote into goes as well, because nobody is left who knows of it. HELD is the handle of the lock by
which the folder is known to be in use, or ``-``: the program gets it too, so that whoever clears away what killed
processes left lets this folder be while any of them lives.

There are two of this process: Ray kills the children of an actor that ended, and would kill the only one before it can
end the program. The second is no child of the actor, and has the same standard input.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType

END_SECONDS = 10
SECOND = "--second"
NOTHING = "-"


def main() -> int:
    """The exit status of the program."""
    if sys.argv[1] != SECOND:
        again = [sys.executable, __file__, SECOND, *sys.argv[1:]]
        return _wait(subprocess.Popen(again, start_new_session=True, pass_fds=_handles(sys.argv[2])))
    folder, held, *command = sys.argv[2:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=_handles(held))
    left_alone = threading.Event()

    def wait_for_the_starter() -> None:
        while os.read(0, 1 << 12):  # not sys.stdin, whose lock a thread may not hold when Python ends
            pass
        left_alone.set()
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=wait_for_the_starter, daemon=True).start()
    code = _wait(child)
    if left_alone.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _handles(held: str) -> "tuple[int, ...]":
    return () if held == NOTHING else (int(held),)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Until the child ends; signals go on to it."""

    def pass_on(number: int, _: "FrameType | None") -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
