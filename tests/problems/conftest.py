"""A mirror of published files on this machine: torchvision's own code downloads from it."""

import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@dataclass(frozen=True)
class Mirror:
    """What lies in the folder can be downloaded."""

    folder: Path
    port: int

    def url(self, file):
        return f"http://127.0.0.1:{self.port}/{file}"


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Mirror(folder, server.server_port)
        server.shutdown()
