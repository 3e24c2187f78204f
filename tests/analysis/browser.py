"""A headless Chromium that is driven through a pipe by its DevTools protocol: real layout, clicks and keys."""

import base64
import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
_PATIENCE = 60


class Browser:
    """One page of a browser, and all that it complained of or asked a network for."""

    def __init__(self, profile):
        theirs, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # Chromium reads descriptor 3 and writes descriptor 4.
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{theirs_out}', PROGRAM, *options, "about:blank"]
        self._process = subprocess.Popen(
            shell, pass_fds=(theirs, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(theirs_out)
        self._number, self._rest, self._session = 0, b"", None
        self.events = []
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(x["targetId"] for x in targets if x["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(_PATIENCE)

    def _receive(self):
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def send(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path, *, width=1100, height=900, media=(), mobile=False):
        """Load a page; seconds until it was there."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        self.send("Emulation.setEmulatedMedia", media="", features=list(media))
        self.events.clear()
        begin = time.monotonic()
        self.send("Page.navigate", url=path.as_uri())
        while not any(x.get("method") == "Page.loadEventFired" for x in self.events):
            self.events.append(self._receive())
        self.do("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - begin

    def do(self, code):
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, x, y):
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector):
        """Scroll an element into view and click on its middle."""
        self.click(*self.middle_of(selector))

    def middle_of(self, selector):
        return self.do(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                found.scrollIntoView({{block: "center"}});
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def text(self, selector):
        return self.do(f"document.querySelector({json.dumps(selector)}).textContent")

    def picture(self, **options):
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"])

    @property
    def complaints(self):
        """Errors of the console and of scripts, and requests for anything but the page itself."""
        found = []
        for event in self.events:
            method, about = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(json.dumps(about))
            elif method == "Network.requestWillBeSent" and about.get("type") != "Document":
                found.append(about["request"]["url"])
        return found
