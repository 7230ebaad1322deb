"""Open a file in headless Chromium through its debugging pipe and write down what it asked for and complained of."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


@dataclasses.dataclass
class Visit:
    """What a page did while it was open."""

    requests: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    value: Any = None
    """What the asked expression came to."""


class Pipe:
    """Chromium's debugging protocol: JSON messages that end in a zero byte, on file descriptors 3 (to it) and 4 (from it)."""

    def __init__(self, chromium: str, profile: Path) -> None:
        to_read, self.to = os.pipe()
        self.came, from_write = os.pipe()
        shell = [
            "bash",
            "-c",
            f'exec "$@" 3<&{to_read} 4>&{from_write}',
            "bash",
            chromium,
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            shell, pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(to_read)
        os.close(from_write)
        self.left, self.sent, self.events = b"", 0, []

    def call(self, method: str, session: str = "", timeout_s: float = 60, **params: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are kept."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self.wait(lambda m: m.get("id") == self.sent, timeout_s)["result"]

    def wait(self, found: Any, timeout_s: float) -> dict[str, Any]:
        """The first message that is wanted. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            while b"\0" in self.left:
                one, _, self.left = self.left.partition(b"\0")
                self.events.append(message := json.loads(one))
                if found(message):
                    return message
            if select.select([self.came], [], [], 0.2)[0]:
                if not (chunk := os.read(self.came, 1 << 20)):
                    raise ConnectionError("chromium ended")
                self.left += chunk
        raise TimeoutError("chromium did not answer")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.to)
        os.close(self.came)


def visit(chromium: str, file: Path, profile: Path, expression: str = "0", *, width: int = 1280, dark: bool = False) -> Visit:
    """Load the file and write down each request but its own, and each error or warning on the console."""
    pipe = Pipe(chromium, profile)
    try:
        target = pipe.call("Target.createTarget", url="about:blank")["targetId"]
        session = pipe.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            pipe.call(f"{domain}.enable", session)
        pipe.call(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        pipe.call("Emulation.setEmulatedMedia", session, features=[scheme])
        pipe.call("Page.navigate", session, url=file.as_uri())
        pipe.wait(lambda m: m.get("method") == "Page.loadEventFired", 60)
        answer = pipe.call("Runtime.evaluate", session, expression=expression, returnByValue=True)
        seen = Visit(value=answer["result"].get("value"))
        for event in pipe.events:
            _note(event.get("method"), event.get("params", {}), seen, file.as_uri())
        return seen
    finally:
        pipe.close()


def _note(method: str | None, params: dict[str, Any], seen: Visit, own: str) -> None:
    if method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        if url != own and not url.startswith("data:"):
            seen.requests.append(url)
    elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
        seen.errors.append(params["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
        seen.errors.append(" ".join(str(a.get("value")) for a in params["args"]))
    elif method == "Runtime.exceptionThrown":
        seen.errors.append(params["exceptionDetails"]["text"])
