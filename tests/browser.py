"""A headless Chromium, driven by the WebDriver protocol over plain HTTP."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars"
).split()
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for elements


def is_installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._post("/url", url=url)

    def run(self, script: str, *arguments):
        """What a script in the page returns."""
        return self._post("/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        self._act(selector, "click")

    def type(self, selector: str, text: str) -> None:
        self._act(selector, "value", text=text)

    def wait_for(self, script: str, *, seconds: float = 10.0):
        """Waits until an expression is true in the page, and gives its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        size = {"width": width, "height": height}
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            **size,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def devtools(self, command: str, **params):
        return self._post("/goog/cdp/execute", cmd=command, params=params)

    def screenshot(self) -> bytes:
        return base64.b64decode(_call("GET", f"{self._session}/screenshot"))

    def log(self) -> list[str]:
        """What the page has complained of."""
        entries = self._post("/se/log", type="browser")
        return [entry["message"] for entry in entries]

    def _act(self, selector: str, action: str, *, tries: int = 5, **body) -> None:
        """Acts on an element; when the page draws it anew meanwhile, on the new one."""
        for left in reversed(range(tries)):
            try:
                self._post(f"/element/{self._find(selector)}/{action}", **body)
                return
            except AssertionError as error:
                if not left or "stale element" not in str(error):
                    raise

    def _find(self, selector: str) -> str:
        found = self._post("/element", using="css selector", value=selector)
        return found[_ELEMENT]

    def _post(self, path: str, **body):
        return _call("POST", self._session + path, body)


def _call(method: str, url: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Starts Chromium with an empty profile, and ends it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        session = None
        try:
            said = next(line for line in driver.stdout if "successfully" in line)
            port = re.search(r"on port (\d+)", said)[1]
            address = f"http://127.0.0.1:{port}"
            options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {
                "alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            }
            made = _call("POST", f"{address}/session", {"capabilities": wanted})
            session = f"{address}/session/{made['sessionId']}"
            yield Browser(session)
        finally:
            if session is not None:
                with contextlib.suppress(OSError):
                    _call("DELETE", session)
            driver.terminate()
            driver.wait()
