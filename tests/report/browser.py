"""Opens pages in headless Chromium, by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
# It reads commands from file 3, and writes to file 4.
_PIPES = 'exec "$@" 3<&"$READS" 4>&"$WRITES"'


class Browser:
  """A page of a browser; `start` makes it.

  Attributes:
    errors: of the page that is open: what its console has shown, and requests
      to a network.
  """

  def __init__(self, commands: int, answers: int):
    self._commands, self._answers = commands, answers
    self._number, self._buffer = 0, b""
    self._events: list[dict] = []
    self._session: str | None = None
    self.errors: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")
    self._session = self.call(
      "Target.attachToTarget", targetId=target["targetId"], flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters) -> dict[str, Any]:
    """Calls a method of the protocol, and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._commands, json.dumps(message).encode() + b"\0")
    while True:
      found = self._read()
      if found.get("id") == self._number:
        assert "error" not in found, found
        return found["result"]
      self._note(found)

  def _read(self) -> dict:
    while b"\0" not in self._buffer:
      part = os.read(self._answers, 2**20)
      assert part, "the browser has ended"
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)

  def _note(self, event: dict) -> None:
    self._events.append(event)
    values = event.get("params", {})
    match event.get("method"):
      case "Runtime.exceptionThrown":
        self.errors.append(str(values["exceptionDetails"]))
      case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning"):
        self.errors.append(str(values["args"]))
      case "Log.entryAdded":
        self.errors.append(str(values["entry"]))
      case "Network.requestWillBeSent":
        url = values["request"]["url"]
        if not url.startswith(("file:", "data:", "about:")):
          self.errors.append(f"the page loads {url}")

  def open(
    self,
    path: str | os.PathLike,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    media: str = "screen",
    scripts: bool = True,
  ) -> None:
    """Opens a file, and waits until it is there."""
    self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    self.call(
      "Emulation.setEmulatedMedia",
      media=media,
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    self._events.clear()
    self.errors.clear()
    found = self.call(
      "Page.navigate", url=pathlib.Path(path).absolute().as_uri()
    )
    assert "errorText" not in found, found
    while not any(
      event.get("method") == "Page.loadEventFired" for event in self._events
    ):
      self._note(self._read())

  def evaluate(self, expression: str) -> Any:
    """Evaluates JavaScript; the result is as JSON has it."""
    found = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True
    )
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def press(self, key: str) -> None:
    """Presses Tab or Enter."""
    code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
    for kind in ("keyDown", "keyUp"):
      self.call(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        code=key,
        text=text,
        windowsVirtualKeyCode=code,
      )

  def print_page(self) -> bytes:
    """Returns a PDF of the page."""
    return base64.b64decode(
      self.call("Page.printToPDF", preferCSSPageSize=True)["data"]
    )


@contextlib.contextmanager
def start() -> Iterator[Browser]:
  """Starts a browser; ends it, and whatever it has started."""
  reads, commands = os.pipe()
  answers, writes = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [
        *("bash", "-c", _PIPES, "bash", PROGRAM),
        *("--headless=new", "--no-sandbox", "--disable-gpu"),
        *("--no-first-run", "--disable-background-networking"),
        *("--disable-dev-shm-usage", "--hide-scrollbars"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
      ],
      env=os.environ | {"READS": str(reads), "WRITES": str(writes)},
      pass_fds=(reads, writes),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    os.close(reads)
    os.close(writes)
    try:
      yield Browser(commands, answers)
    finally:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      os.close(commands)
      os.close(answers)
