"""A real browser, without a window: what it says of a page, asks for, and how wide it draws it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

__all__ = ["Visit", "needs_browser", "visit"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60

needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, _NAMES)), reason=f"no browser here: none of {', '.join(_NAMES)}"
)


@dataclass
class Visit:
    """What happened while a page was shown."""

    said: list[str] = field(default_factory=list)
    """Errors and all else on the console."""
    asked: list[str] = field(default_factory=list)
    """Addresses that it asked for, but the page itself and what it carries."""
    width: int = 0
    """Pixels that the page is wide, whatever the window is."""
    words: str = ""
    """The text that is to be seen."""
    pdf: bytes = b""
    """The page as it is printed."""


def visit(
    path: Path, width: int = 1280, *, dark: bool = False, picture: Path | None = None
) -> Visit:
    """Show a page in a window of some width; `picture` is a PNG file to write of it."""
    program = next(filter(None, map(shutil.which, _NAMES)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(folder) / "DevToolsActivePort", process)
            return asyncio.run(_visit(port, path, width, dark, picture))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            lines = file.read_text().splitlines()
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise TimeoutError("the browser did not start")


async def _visit(url: str, path: Path, width: int, dark: bool, picture: Path | None) -> Visit:
    found = Visit()
    socket = await websocket_connect(url, max_message_size=2**28)
    number, loaded = 0, False
    session: str | None = None

    def heard(message: dict[str, Any]) -> None:
        nonlocal loaded
        what, told = message.get("method"), message.get("params", {})
        if what == "Page.loadEventFired":
            loaded = True
        elif what == "Runtime.consoleAPICalled":
            found.said.append(json.dumps(told["args"]))
        elif what == "Runtime.exceptionThrown":
            found.said.append(told["exceptionDetails"]["text"])
        elif what == "Log.entryAdded":
            found.said.append(told["entry"]["text"])
        elif what == "Network.requestWillBeSent":
            asked = told["request"]["url"]
            if not asked.startswith("data:") and asked != path.as_uri():
                found.asked.append(asked)

    async def read() -> dict[str, Any]:
        text = await asyncio.wait_for(_next(socket), _PATIENCE)
        message: dict[str, Any] = json.loads(text)
        heard(message)
        return message

    async def ask(method: str, **params: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        mine = number
        sent = {"id": mine, "method": method, "params": params}
        await socket.write_message(json.dumps(sent | ({"sessionId": session} if session else {})))
        while (message := await read()).get("id") != mine:
            pass
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    target = (await ask("Target.createTarget", url="about:blank"))["targetId"]
    session = (await ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        await ask(f"{domain}.enable")
    await ask(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=844,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await ask("Emulation.setEmulatedMedia", features=[scheme])
    await ask("Page.navigate", url=path.as_uri())
    while not loaded:
        await read()
    found.width = await _told(ask, "document.documentElement.scrollWidth")
    found.words = await _told(ask, "document.body.innerText")
    if picture is not None:
        high = await _told(ask, "document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": high, "scale": 1}
        shot = await ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        picture.write_bytes(base64.b64decode(shot["data"]))
    printed = await ask("Page.printToPDF", printBackground=False)
    found.pdf = base64.b64decode(printed["data"])
    # The browser answers before its end of the line is closed.
    await ask("Target.closeTarget", targetId=target)
    socket.close()
    while await asyncio.wait_for(socket.read_message(), _PATIENCE) is not None:
        pass
    await asyncio.sleep(0)
    return found


async def _next(socket: Any) -> str:
    message = await socket.read_message()
    if message is None:
        raise ConnectionError("the browser went away")
    return str(message)


async def _told(ask: Any, what: str) -> Any:
    return (await ask("Runtime.evaluate", expression=what, returnByValue=True))["result"]["value"]
