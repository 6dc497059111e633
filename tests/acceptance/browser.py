"""A headless Chromium, driven by its own protocol (CDP) over a WebSocket.

`with Browser(folder) as browser: page = browser.open(url)`. What the page asked of the network and what it complained
about is kept from the first byte on: `page.requests`, `page.complaints`. Where there is no Chromium, the test that wants one
is skipped and says so; in CI (a variable of that name) it fails.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from websockets.sync.client import ClientConnection, connect

PATIENCE = 60.0  # seconds; a busy machine, not a limit
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = f"There is no Chromium on this machine ({', '.join(NAMES)}): `apt-get install chromium`, as .ci/run does."


def find_chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        program = find_chromium()
        if program is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
        arguments = [
            program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self.folder}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-default-browser-check",
        ]  # fmt: skip
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium refuses to start as root otherwise, as in a container
        self.process = subprocess.Popen([*arguments, "about:blank"], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "DevTools listening on " in line:
                self.address = line.split("DevTools listening on ")[1].strip()
                break
        else:
            raise AssertionError("Chromium did not start:\n" + "".join(said))
        self._open = contextlib.ExitStack()
        self._connection = self._open.enter_context(
            connect(self.address, max_size=None, compression=None, ping_interval=None)
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def open(self, url: str, width: int = 1280, height: int = 900) -> Page:
        """A new tab, of that size, showing the URL."""
        page = Page(self._connection, width, height)
        page.go(url)
        return page


class Page:
    """One tab. Only the newest page of a browser is to be used: they share its connection."""

    def __init__(self, connection: ClientConnection, width: int, height: int) -> None:
        self._connection = connection
        self._number = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility", "DOM"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def go(self, url: str) -> None:
        self._events.clear()
        self.call("Page.navigate", url=url)
        self._wait(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events), f"load {url}")

    def run(self, script: str) -> Any:
        """The value of an expression (awaited if it is a promise), as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {json.dumps(answer['exceptionDetails'])[:2000]}")
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        script = """new Promise((done, fail) => {
            const end = Date.now() + %d;
            const look = () => (%s) ? done() : Date.now() < end ? setTimeout(look, 10) : fail(new Error("not so in time"));
            look();
        })"""
        self.run(script % (1000 * (PATIENCE - 10), condition))

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element, as a person's: what lies above it gets it."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key of the keyboard: Tab, Enter, ArrowDown …"""
        codes = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowDown": 40, "ArrowUp": 38}
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        name = " " if key == "Space" else key
        common = {"key": name, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def names(self, role: str) -> list[str]:
        """What a screen reader calls each element of that role, in order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if not node["ignored"] and node.get("role", {}).get("value") == role
        ]

    def picture(self, file: Path) -> None:
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _wait(self, true: Any, what: str) -> None:
        while not true():
            self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(self._connection.recv(timeout=PATIENCE))
        except TimeoutError:
            raise AssertionError(f"Chromium said nothing for {PATIENCE:g} s.") from None
        if "method" in message and message.get("sessionId") == self._session:
            self._note(message["method"], message["params"])
            self._events.append(message)
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
