"""A browser for tests: headless Chromium through WebDriver, whose requests are few enough to be written here.

Calls block; trio tests make them in a thread (`Browser.soon`).
"""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["MISSING", "Browser"]

MISSING = ", ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)
"""What this host lacks; Debian has them as chromium and chromium-driver."""

CALL_SECONDS = 30.0

_KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Shift": "\ue008", "Left": "\ue012"}


class Browser:
    """One window; a context manager. `folder` is for its profile."""

    def __init__(self, folder: Path, *, insecure: bool = False) -> None:
        self._folder = folder
        self._insecure = insecure

    def __enter__(self) -> Self:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout
        lines = (re.search(r"successfully on port (\d+)", line) for line in self._driver.stdout)
        self._base = f"http://127.0.0.1:{next(found[1] for found in lines if found)}/session"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=1000,700",
            f"--user-data-dir={self._folder}",
        ]
        wanted = {
            "acceptInsecureCerts": self._insecure,
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        try:
            session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._driver.kill()
            raise
        self._base += f"/{session['sessionId']}"
        self._call("/timeouts", {"script": int(CALL_SECONDS * 1000)})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call("", None, method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.communicate(timeout=CALL_SECONDS)

    async def soon(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a blocking call that is made in a thread."""
        return await trio.to_thread.run_sync(call, *arguments)

    def go(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self._call("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a function body returns."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true, looked at whenever the page may have changed."""
        script = f"""
            const done = arguments[0];
            const look = () => {{
                let value = null;
                try {{ value = {expression}; }} catch {{ }}
                if (value) {{ done(value); }} else {{ setTimeout(look, 20); }}
            }};
            look();
        """
        return self._call("/execute/async", {"script": script, "args": []})

    def press(self, *keys: str) -> None:
        """Press and release keys one after the other: characters, or names as `Enter`."""
        actions = [
            {"type": kind, "value": _KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def click(self, selector: str, x: int | None = None, y: int | None = None) -> None:
        """Click on an element's middle, or at a place counted from its upper left corner."""
        box = self.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)
        place = {
            "x": math.ceil(box["x"] + (box["width"] / 2 if x is None else x)),
            "y": math.ceil(box["y"] + (box["height"] / 2 if y is None else y)),
        }
        actions = [
            {"type": "pointerMove", "duration": 0, **place},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def choose(self, selector: str, value: str) -> None:
        """Set a field's value as a user does who then leaves it."""
        self.run(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('change'))",
            selector,
            value,
        )

    def canvas(self, selector: str) -> tuple[int, int, bytes]:
        """Width, height and RGBA pixels of a canvas."""
        found = self.run(
            """
            const canvas = document.querySelector(arguments[0]);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let text = "";
            for (let i = 0; i < data.length; i += 8192) {
                text += String.fromCharCode(...data.subarray(i, i + 8192));
            }
            return [canvas.width, canvas.height, btoa(text)];
            """,
            selector,
        )
        return found[0], found[1], base64.b64decode(found[2])

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._call("/screenshot", None, method="GET"))

    def complaints(self) -> list[str]:
        """What the browser has said about errors and policies since the last call."""
        entries = self._call("/se/log", {"type": "browser"})
        return [each["message"] for each in entries if each["level"] == "SEVERE"]

    def _call(self, path: str, body: object, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"content-type": "application/json"}, method=method)
        try:
            with self._open(request, timeout=CALL_SECONDS * 2) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.loads(error.read())["value"]["message"]) from None
