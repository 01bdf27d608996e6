"""`kfbench similarity`: its table, its files, and every wrong use as one sentence, exit 2, and nothing on disk."""

import json
from pathlib import Path

import pytest

from kfbench.config.load import load_config

SMALL = ["--width", "6", "--train-samples", "40", "--eval-samples", "20", "--batch-size", "20", "--updates", "6"]
PLAIN = ["similarity", *SMALL, "--T", "3", "--warmup-batches", "1"]


def test_tables_plots_and_files(kfbench):
    more = ["--metric", "both", "--progress", "--spectrum", "7", "--plot", "--seeds", "2", "--quick"]
    code, out, err = kfbench(*PLAIN, *more, "--out", "s")
    assert code == 0, err
    assert "cosine of" in out and "progress of" in out and "curvature in" in out and "+-" in out
    assert "20 looks a seed, one every 1 updates, along kfac" in err and "quick run: not for comparison" in err
    assert "metric foof: A and lambda of foof" in err
    names = {p.name for p in Path("s").iterdir()}
    assert names >= {f"{n}.{k}" for n in ("similarity", "progress", "spectrum") for k in ("csv", "png")} | {
        "heatmap.png"
    }
    assert kfbench(*PLAIN, "--out", "s")[0] == 2, "nothing is replaced unasked"
    assert kfbench(*PLAIN, "--out", "s", "--overwrite")[0] == 0


def test_formats_are_for_pipes(kfbench):
    words = [*PLAIN, "--opt", "sgd"]
    code, out, _ = kfbench(*words, "--format", "json")
    record = json.loads(out)
    assert code == 0 and record["follow"] == "kfac" and record["methods"] == ["kfac", "sgd"]
    assert kfbench(*words, "--format", "csv")[1].startswith("cosine of,with,metric,network,layer 1")
    assert kfbench(*words, "--format", "markdown")[1].startswith("| cosine of")
    assert len(list(Path("runs").iterdir())) == 3


def test_the_recorded_configuration_gives_the_same_again(kfbench):
    kfbench(*PLAIN, "--follow", "kfac:ema=0.5", "--opt", "kfac", "--opt", "foof", "--against", "foof", "--out", "a")
    config = load_config(Path("a/config.yaml"), command="similarity")
    assert config.similarity.follow == "kfac-ema=0.5" and config.similarity.against == "foof"
    assert kfbench("similarity", "--config", "a/config.yaml", "--out", "b")[0] == 0
    assert Path("a/similarity.csv").read_bytes() == Path("b/similarity.csv").read_bytes()


def test_diverged_is_3(kfbench):
    code, _, err = kfbench(*PLAIN, "--follow", "sgd:lr=1e30", "--opt", "foof")
    assert code == 3 and "diverged" in err


WRONG = [
    (["--every", "0"], "every should be greater than or equal to 1, got '0'"),
    (["--metric", "angle"], "metric should be 'euclidean' or 'foof', got 'angle'"),
    (["--metric", "foof", "--opt", "sgd"], "metric 'foof' takes its curvature from a foof, which is none of"),
    (["--spectrum", "9"], "no such layer is captured; there are 1, 3, 5, 7"),
    (["--progress-lr", "best"], "progress_lr should be 'given' or 'search', got 'best'"),
    (["--opt", "foof", "--opt", "foof"], "method 'foof' is given twice with the same options"),
    (["--opt", "kfac"], "similarity compares two methods or more, got kfac alone"),
    (["--follow", "kfacc"], "did you mean 'kfac'?"),
    (["--against", "sdg"], "did you mean 'sgd'?"),
    (["--follow", "kfac", "--follow", "foof"], "similarity takes one value of --follow"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_use_is_one_sentence(kfbench, words, sentence):
    code, _, err = kfbench(*PLAIN, *words)
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1, err
    assert not Path("runs").exists()
