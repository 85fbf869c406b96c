"""A headless Chromium for one test, spoken to by the DevTools protocol over a pipe."""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 120


def program():
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Browser:
    """with Browser() as b: b.open(url); b.run("document.title"); b.events: what the page did"""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="baton-chromium-")
        to_read, self.to = os.pipe()
        self.of, of_write = os.pipe()
        # Chromium reads descriptor 3 and writes descriptor 4.
        script = f"exec 3<&{to_read} 4>&{of_write}; exec \"$@\""
        command = [program(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
                   "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update",
                   "--hide-scrollbars", f"--user-data-dir={self.home}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command], pass_fds=(to_read, of_write),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.home}, start_new_session=True)
        os.close(to_read)
        os.close(of_write)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []

    def __enter__(self):
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.send("Target.attachToTarget", targetId=target,
                                     flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
                self.send(domain + ".enable")
            return self
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind, value, trace):
        self.stop()

    def stop(self):
        os.close(self.to)   # it ends with its pipe
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        os.close(self.of)
        shutil.rmtree(self.home, ignore_errors=True)

    def receive(self, end):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.of], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.of, 1 << 20)
            if not data:
                raise AssertionError("chromium has ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        end = time.monotonic() + PATIENCE_S
        while True:
            answer = self.receive(end)
            if answer is None:
                raise AssertionError(f"chromium did not answer {method}")
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def open(self, url):
        self.send("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {json.dumps(result['exceptionDetails'])}")
        return result["result"].get("value")

    def params(self, method):
        return [event["params"] for event in self.events if event["method"] == method]

    def look(self, width, height, dark=False, scale=1, mobile=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=mobile)
        self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self, path, whole=False):
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))
