"""A claim is read once: its YAML parsed, its methods resolved, whatever is asked of it afterwards."""

import sys
from pathlib import Path

import pytest

from kfbench.claims.file import read_claim
from kfbench.cli.app import main
from kfbench.config import load, yaml_file

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def _counted(monkeypatch, module, name):
    """How often a function is called, whoever has imported it."""
    calls, own = [], getattr(module, name)
    counted = lambda *args, **kwargs: calls.append(args) or own(*args, **kwargs)  # noqa: E731
    for other in [m for key, m in sys.modules.items() if key.startswith("kfbench.")]:
        for key, value in list(vars(other).items()):
            if value is own:
                monkeypatch.setattr(other, key, counted)
    return calls


def test_all_verdicts_parse_each_yaml_and_resolve_each_claim_once(monkeypatch, capsys):
    parsed = _counted(monkeypatch, yaml_file, "parse_yaml")
    resolved = _counted(monkeypatch, load, "resolve_methods")
    monkeypatch.setattr(sys, "argv", ["kfbench", "compare", str(CONFIGS), "--format", "csv"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert len(parsed) == len(list(CONFIGS.glob("*.yaml")))
    assert len(resolved) == len(capsys.readouterr().out.splitlines()) - 1, "one row a claim, and the header"


def test_scales_share_the_methods_and_differ_in_the_rest():
    path = CONFIGS / "foof-1a.yaml"
    small, full = read_claim(path, "small"), read_claim(path, "full")
    assert small.config.methods == full.config.methods
    assert small.config.problem.width == 250 and full.config.problem.width != 250
    assert small.hash != full.hash
    assert small.config.sweep.grids == full.config.sweep.grids and small.config.sweep.grids, "the file's own block"


def test_what_full_size_tunes_for_one_epoch_is_the_same_at_scale_small(tmp_path):
    text = (CONFIGS / "foof-1a.yaml").read_text()
    assert "  epochs: 1\n" in text and "  final_epochs: 10\n" in text
    (tmp_path / "other.yaml").write_text(
        text.replace("  epochs: 1\n", "  epochs: 10\n").replace("  final_epochs: 10\n", "")
    )
    scales = ("small", "full")
    here, there = (
        [read_claim(path, scale).hash for scale in scales]
        for path in (CONFIGS / "foof-1a.yaml", tmp_path / "other.yaml")
    )
    assert here[0] == there[0], "three epochs each"
    assert here[1] != there[1]
