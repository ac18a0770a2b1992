"""Starting a server process, waiting until it answers, and stopping it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
_LEASH = Path(__file__).with_name("leash.py")


class ServerError(RuntimeError):
    """A server did not start; the message ends with the last lines it wrote."""


@dataclass(frozen=True, slots=True)
class Process:
    """One running server process and the file its output goes to."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 20) -> str:
        """The last lines the process wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Process]:
    """Run a command beside the tests; it ends with the block, or with this process if that dies.

    Parameters
    ----------
    name
        Used for the log file and in errors.
    command
        The program and its arguments; it must stay in the foreground.
    folder
        Where its output goes, as ``<name>.out``.
    env
        Variables added to those of this process.
    cwd
        The folder to run in.
    """
    log = folder / f"{name}.out"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [sys.executable, "-I", str(_LEASH), *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop their servers
        )
    try:
        yield Process(name, popen, log)
    finally:
        if popen.stdin is not None:
            popen.stdin.close()
        # The closed pipe is enough, unless a process forked from this one still holds it.
        popen.terminate()
        try:
            popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def wait_until(
    ready: Callable[[], bool],
    what: str,
    processes: Sequence[Process],
    *,
    seconds: float = 60.0,
) -> None:
    """Wait until ``ready()`` is true, but neither longer than ``seconds`` nor for a dead process.

    Raises
    ------
    ServerError
        When time runs out or one of the processes has ended.
    """
    start = time.monotonic()
    while not ready():
        for process in processes:
            code = process.popen.poll()
            if code is not None:
                raise ServerError(f"{process.name} ended with {code}\n{process.tail()}")
        if time.monotonic() - start > seconds:
            tails = "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes)
            raise ServerError(f"{what} did not answer within {seconds:.0f} s\n{tails}")
        time.sleep(0.05)


def answers_http(url: str) -> bool:
    """Whether something at this address speaks HTTP, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:  # refused, reset or timed out: not yet
        return False
