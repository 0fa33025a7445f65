"""Headless Chromium for the tests, driven through ChromeDriver's own protocol (W3C WebDriver, JSON, HTTP).

Some lines of standard library in place of a browser-automation package. Debian: chromium, chromium-driver.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# The last four keep a closed network quiet: without them the browser calls home at every start.
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
KEYS = {
    "left": "\ue012",
    "up": "\ue013",
    "right": "\ue014",
    "down": "\ue015",
    "home": "\ue011",
    "end": "\ue010",
}


def missing() -> str:
    """Why no browser test can run here; empty if one can."""
    absent = [name for name, found in (("chromium", _chromium()), ("chromedriver", _driver())) if not found]
    return f"not installed: {', '.join(absent)} (Debian: chromium, chromium-driver)" if absent else ""


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def _driver() -> str | None:
    return shutil.which("chromedriver")


class Browser:
    """One window. Use as a context manager; `profile` is an empty folder for the browser's own files."""

    def __init__(
        self, profile: Path, size: tuple[int, int] = (1280, 900), flags: tuple[str, ...] = ()
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            [str(_driver()), f"--port={port}", "--allowed-ips=127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": _chromium(),
            "args": [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", *flags],
        }
        try:
            self._wait_until_up()
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "unhandledPromptBehavior": "ignore",
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._base += f"/session/{answer['sessionId']}"
            # Without it a page may get the focus late or never, and then hears no keys.
            self._devtools("Emulation.setFocusEmulationEnabled", enabled=True)
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "", None)
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=20)

    def open(self, page: Path | str, fragment: str = "") -> None:
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._call("POST", "/url", {"url": address + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """What `return …` in the script gives."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def press(self, *keys: str) -> None:
        """Press and release real keys, by name (see KEYS) or as characters; the page has heard them when it returns."""
        self.run(
            "window.heard = 0;"
            "if (!window.hears) addEventListener('keyup', () => window.heard++, true);"
            "window.hears = true"
        )
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})
        self.until("return window.heard >= arguments[0]", len(keys))

    def click(self, selector: str) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click", {})

    def click_at(self, selector: str, across: float, down: float) -> None:
        """A real click inside an element, at shares (0 to 1) of its width and height."""
        box = "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        left, top, width, height = self.run(f"{box} return [b.x, b.y, b.width, b.height]", selector)
        place = {"x": round(left + across * width), "y": round(top + down * height), "origin": "viewport"}
        actions = [
            {"type": "pointerMove", **place},
            *({"type": each, "button": 0} for each in ("pointerDown", "pointerUp")),
        ]
        pointer = {
            "type": "pointer",
            "id": "mouse",
            "parameters": {"pointerType": "mouse"},
            "actions": actions,
        }
        self._call("POST", "/actions", {"actions": [pointer]})

    def dialog(self) -> str | None:
        """The text of an open alert, or None."""
        try:
            return str(self._call("GET", "/alert/text", None))
        except urllib.error.HTTPError:
            return None

    def requests(self) -> list[str]:
        """Every address asked for since the last call, the browser's own start page left out."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked if not each["documentURL"].startswith("chrome:")]

    def complaints(self) -> list[str]:
        """What the pages' consoles said at level warning or above since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Lay pages out for a screen of this size, below the smallest window too."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot", None)))

    def pdf(self) -> bytes:
        return base64.b64decode(self._call("POST", "/print", {}))

    def _devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the browser's own protocol (Chrome DevTools Protocol), where WebDriver has none."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def until(self, script: str, *arguments: Any) -> None:
        """Wait until a script says true: how long that takes is the machine's business."""
        for _ in range(3000):
            if self.run(script, *arguments):
                return
            time.sleep(0.02)
        raise AssertionError(f"the page never came to it: {script}")

    def _wait_until_up(self) -> None:
        for _ in range(1200):
            try:
                if self._call("GET", "/status", None)["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("chromedriver did not start")

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        # No proxy: the driver is on this machine, whatever the environment says about the rest of the world.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=300
        ) as answer:
            return json.loads(answer.read())["value"]
