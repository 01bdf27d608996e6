"""Pages as a browser shows them: the document after its scripts have run, and what it complained of."""

import shutil
import subprocess

import pytest

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

needs_browser = pytest.mark.skipif(_BROWSER is None, reason="no Chromium")


def browse(path, place="", window="390,844"):
    """(document after its scripts have run, what was logged); ``place`` is the ?query or #fragment."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000", "--dump-dom"]
    logging = [
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={path.parent / 'browser'}",
        f"--window-size={window}",
    ]
    command = [_BROWSER, *words, *logging, f"file://{path.resolve()}{place}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
