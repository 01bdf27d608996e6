"""Commands run in this process."""

import sys
import warnings

import pytest

from kfbench.cli.app import main


@pytest.fixture
def kfbench(monkeypatch, capsys):
    """Run a command in this process; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kfbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run
