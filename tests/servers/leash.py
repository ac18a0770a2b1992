"""Run a command for as long as someone holds our standard input open.

    python leash.py COMMAND [ARGUMENT ...]

The tests start every server through this script and keep the writing end of its standard input.
When they end, even by SIGKILL, the operating system closes that end and the server is stopped,
so no test run leaves a daemon behind.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

GRACE_SECONDS = 3.0


def stop(child: "subprocess.Popen[bytes]") -> None:
    """Ask the child to end; make it end when it does not."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


def main(command: list[str]) -> int:
    """Run the command until it ends, we are asked to end, or standard input is closed."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    def wait_for_end_of_input() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock must be free when we exit
            pass
        stop(child)

    signal.signal(signal.SIGTERM, on_signal)
    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    try:
        return child.wait()
    finally:
        stop(child)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
