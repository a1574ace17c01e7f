"""A headless Chromium, driven over the W3C WebDriver protocol: plain HTTP to `chromedriver`.

One browser, `shared()`, serves a whole session of tests. Real key presses, scripts with JSON
arguments, the console and the list of requests need nothing but the two programs and the
standard library.
"""

import atexit
import base64
import functools
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS = {"ArrowRight": "\ue014", "ArrowLeft": "\ue012", "Home": "\ue011", "End": "\ue010",
         "Tab": "\ue004", "Enter": "\ue007", "Space": " "}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference


def missing():
    """Return what is missing to drive a browser, "" if nothing is."""
    if not any(map(shutil.which, CHROMIUM)):
        return "no chromium"
    return "" if shutil.which("chromedriver") else "no chromedriver (Debian: chromium-driver)"


@functools.cache
def shared():
    """Return this process's one `Browser`: started at the first call, it ends with the process."""
    profile = tempfile.TemporaryDirectory()
    atexit.register(profile.cleanup)
    window = Browser(profile.name)
    atexit.register(window.close)  # the last to be registered goes first
    window.open("about:blank")
    window.log("browser"), window.log("performance")  # of the window's first page
    return window


class Browser:
    """A window without a screen."""

    def __init__(self, profile):
        """Start with the empty folder `profile` as the user's."""
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._driver = subprocess.Popen(["chromedriver", "--port=0"], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._session = ""
        try:
            self._base = f"http://127.0.0.1:{self._port()}/session"
            binary = next(filter(None, map(shutil.which, CHROMIUM)))
            # No sandbox: in a container root has none, and only our own file is opened.
            arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                         "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
                         f"--user-data-dir={profile}"]
            options = {"goog:chromeOptions": {"binary": binary, "args": arguments},
                       "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            made = self._send("POST", "", {"capabilities": {"alwaysMatch": options}})
            self._session = "/" + made["sessionId"]
        except BaseException:
            self.close()
            raise

    def close(self):
        """End the browser and its driver."""
        try:
            if self._session:
                self._send("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._driver.stdout.close()

    def open(self, url):
        """Load a page, and wait until it is there."""
        self._send("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """Return what the body of a function `script` returns for JSON `arguments`."""
        return self._send("POST", "/execute/sync", {"script": script, "args": arguments})

    def press(self, key, times=1):
        """Press a key as a user does: it goes to what has the focus."""
        key = _KEYS[key]
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")] * times
        self._send("POST", "/actions", {"actions": [
            {"type": "key", "id": "keyboard", "actions": strokes}]})

    def click(self, selector):
        """Click on the first element of a CSS selector, which must be visible."""
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{found[_ELEMENT]}/click", {})

    def resize(self, width, height):
        """Set the size of the page in CSS pixels, even below what a window may have."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=False)

    def command(self, name, **parameters):
        """Return the answer of a command of the DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def log(self, kind):
        """Return the entries since the last call: of the "browser" console or "performance"."""
        return self._send("POST", "/se/log", {"type": kind})

    def screenshot(self, path):
        """Write the whole page, not only what is in view, as a PNG."""
        data = self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _port(self):
        for line in self._driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                return int(found[1])
        raise RuntimeError("chromedriver ended before it was ready")

    def _send(self, method, path, body=None):
        request = urllib.request.Request(
            self._base + self._session + path, method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                value = json.load(error)["value"]
            raise RuntimeError(f"{value['error']}: {value['message']}") from None
