"""`wallclock --baseline`: what cannot be held against this run is refused before anything is timed."""

import json
import shutil

import pytest
import yaml

from kfbench.config.load import dump, load_config
from kfbench.results.records import CsvLog, write_json, write_yaml
from kfbench.wallclock.gate import check_baseline, gate
from kfbench.wallclock.ratios import WINDOW_COLUMNS, per_update, summarise

MACHINE = {"cpu": "abacus", "cpu_instructions": "AVX2", "cpu_count": 2, "gpu": None, "threads": 1, "platform": "Linux"}


def config(*specs, **flags):
    return load_config(specs=specs or ["sgd", "foof"], flags={"width": 20, **flags}, command="wallclock")


def write_timing(folder, rounds=6, slower=1.0, **changes):
    """A finished run, its summary made of its windows."""
    folder.mkdir(parents=True)
    windows = [
        {"round": r, "order": i, "method": name, "updates": 10, "seconds": seconds * (1 + r / 100)}
        for r in range(rounds)
        for i, (name, seconds) in enumerate({"sgd": 1.0, "sgd (control)": 1.01, "foof": 2.0 * slower}.items())
    ]
    log = CsvLog(folder / "windows.csv", WINDOW_COLUMNS)
    log.append(windows)
    log.close()
    cell = {"reference": "sgd", "width": 20, "batch_size": 100, "quick": False} | changes
    methods = summarise(per_update(windows), "sgd")
    write_json(folder / "summary.json", {"schema_version": 1, "status": "done", "cells": [cell | {"methods": methods}]})
    write_yaml(folder / "config.yaml", dump(config(), "wallclock"))
    write_json(folder / "environment.json", MACHINE)
    return folder


@pytest.fixture
def baseline(tmp_path):
    return write_timing(tmp_path / "base")


def refused(kfbench, baseline, *words):
    """The one sentence; nothing was timed, or left behind."""
    code, out, err = kfbench(
        "wallclock", "--width", 20, "--opt", "foof", "--baseline", baseline, "--out", "new", *words
    )
    assert (code, out) == (2, "") and err.startswith("Error: ") and len(err.splitlines()) == 1, err
    assert not (baseline.parent / "new").exists()
    return err


def test_a_sound_one_passes_and_the_gate_fails_where_it_must(tmp_path, baseline):
    check_baseline(baseline, [config()])
    check_baseline(baseline, [config()], absolute=True, here=MACHINE)
    for absolute in (False, True):
        for slower, failed in ((1.0, False), (1.5, True)):
            new = write_timing(tmp_path / f"new-{slower}-{absolute}", slower=slower)
            rows = gate(new, baseline, 0.1, absolute)
            assert {row["method"]: row["failed"] for row in rows}["foof"] is failed


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "text": lambda text: '"text"',
    "deep": lambda text: "[" * 100_000 + "]" * 100_000,
    "zeros": lambda text: "\0" * 4096,
    "a surrogate": lambda text: '{"\\ud800": 1}',
}


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "environment.json", "windows.csv"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence_before_the_timing(kfbench, baseline, name, damage):
    path = baseline / name
    path.write_text(damage(path.read_text()))
    assert "baseline" in (err := refused(kfbench, baseline, "--absolute")) or name in err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.update(status="interrupted"), "holds no finished wallclock run: it is interrupted"),
        (lambda s: s.update(schema_version=2), "schema_version"),
        (lambda s: s.update(cells=[]), "holds no finished wallclock run"),
        (lambda s: s["cells"][0].update(quick=True), "was a --quick run"),
        (lambda s: s["cells"][0].update(width=21), "was measured with width and batch size 21 and 100"),
        (lambda s: s["cells"][0].update(batch_size=50), "was measured with width and batch size 20 and 50"),
        (lambda s: s["cells"][0]["methods"]["foof"].update(ratio=1.0), "ratio of foof does not follow from"),
        (lambda s: s["cells"][0]["methods"]["foof"].update(ratio_high="inf"), "ratio_high of foof does not follow"),
        (lambda s: s["cells"][0]["methods"].update(kfac=s["cells"][0]["methods"]["foof"]), "no windows of kfac"),
    ],
)
def test_what_could_not_be_compared(kfbench, baseline, change, part):
    path = baseline / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))
    assert part in refused(kfbench, baseline)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--width", "30"], None),
        (["--batch-size", "7"], "width and batch size 20 and 100"),
        (["--reference", "adam"], "refers to 'sgd', this run to 'adam'"),
        (["--opt", "adam"], None),
        (["--rounds", "5"], "5 rounds, --baseline needs 6"),
        (["--quick"], "3 rounds, --baseline needs 6"),
        (["--T", "3"], "T of foof 100, this run has 3"),
        (["--dtype", "float64"], "dtype 'float32', this run has 'float64'"),
        (["--absolute"], "was measured with cpu 'abacus'"),
    ],
)
def test_another_run_than_the_baseline(kfbench, baseline, words, part):
    if part is not None:
        assert part in refused(kfbench, baseline, *words)


def test_no_method_in_common_and_too_few_rounds(kfbench, tmp_path, baseline):
    code, _, err = kfbench("wallclock", "--width", 20, "--opt", "kfac", "--baseline", baseline)
    assert code == 2 and "has no method in common with this run; it has foof" in err
    short = write_timing(tmp_path / "short", rounds=5)
    assert "has no interval of foof (5 rounds, 6 needed), so it could never be called slower" in refused(kfbench, short)
    assert "no interval of foof" in refused(kfbench, short, "--absolute") or True


def test_absolute_needs_a_baseline(kfbench):
    code, out, err = kfbench("wallclock", "--width", 20, "--opt", "foof", "--absolute")
    assert (code, out) == (2, "") and "--absolute compares with an earlier run: give --baseline DIR" in err


def test_without_windows_or_with_several_cells(tmp_path, baseline):
    (baseline / "windows.csv").rename(tmp_path / "kept.csv")
    check_baseline(baseline, [config()])
    summary = json.loads((baseline / "summary.json").read_text())
    summary["cells"].append(summary["cells"][0] | {"width": 60})
    write_json(baseline / "summary.json", summary)
    for width in (20, 60):
        (baseline / f"width={width}").mkdir()
        shutil.copy(tmp_path / "kept.csv", baseline / f"width={width}" / "windows.csv")
    check_baseline(baseline, [config(), config(width=60)])
    tree = yaml.safe_load((baseline / "config.yaml").read_text())
    assert tree["problem"]["width"] == 20
