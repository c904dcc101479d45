"""A folder of this machine in the place of the buckets of gs://.

Metadata are read through fsspec, for which `Buckets` stands in for gcsfs;
records through the client of Google inside ArrayRecord, which a server on this
machine answers as cloud storage does.
"""

import contextlib
import http.server
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator

import fsspec
from etils.epath import backend
from fsspec.implementations import dirfs, local


@contextlib.contextmanager
def serve(folder: pathlib.Path, monkeypatch) -> Iterator[None]:
  """Reads of gs://NAME/FILE get the file NAME/FILE in a folder."""

  class Buckets(dirfs.DirFileSystem):
    cachable = False

    def __init__(self, **unused):
      super().__init__(path=str(folder), fs=local.LocalFileSystem())

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
      return path.removeprefix("gs://").rstrip("/")

  class Handler(_Handler):
    root = folder

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f"http://127.0.0.1:{server.server_port}"
  monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
  for scheme in ("gs", "gcs"):
    fsspec.register_implementation(scheme, Buckets, clobber=True)
  cached = backend.fsspec_backend._get_filesystem
  cached.cache_clear()
  try:
    yield
  finally:
    cached.cache_clear()
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers GET /storage/v1/b/NAME/o/FILE?alt=media, of a range of bytes."""

  protocol_version = "HTTP/1.1"
  root: pathlib.Path

  def do_GET(self) -> None:
    path = urllib.parse.urlsplit(self.path).path
    bucket, _, file = path.removeprefix("/storage/v1/b/").partition("/o/")
    try:
      data = (self.root / bucket / urllib.parse.unquote(file)).read_bytes()
    except OSError:
      return self._answer(404, b"")
    first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
    if first:
      begin, end = int(first), int(last or len(data) - 1) + 1
    else:  # the last bytes
      begin, end = max(0, len(data) - int(last)), len(data)
    part = data[begin:end]
    shown = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
    self._answer(206, part, {"Content-Range": shown})

  def _answer(self, code: int, body: bytes, headers=()) -> None:
    # The client leaves once it has enough.
    with contextlib.suppress(ConnectionError):
      self.send_response(code)
      for name, value in dict(headers).items():
        self.send_header(name, value)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  def handle(self) -> None:
    with contextlib.suppress(ConnectionError):
      super().handle()

  def log_message(self, *unused) -> None:
    pass
