"""The command line: it answers without torch, and every wrong use is one sentence, exit code 2, and nothing on disk."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kfbench.config.method_table import METHODS
from kfbench.config.problem_table import DATASETS, MODELS
from kfbench.errors import UsageError
from tests.results.run_folders import tree

QUICK = ["--quick", "--width", "20"]


# Answers.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--help"], ["train", "sweep", "compare", "wallclock", "similarity", "report", "data", "list", "--version"]),
        (["-h"], ["train", "data", "list"]),
        (["train", "--help"], ["--opt", "--lr", "--damping", "--T", "--epochs", "--resume", "foof", "--help-all"]),
        (["train", "--help-all"], ["--opt", "--lr", "--damping-kind", "--T", "--no-bias", "--set", "--resume", "foof"]),
        (["report", "--help"], ["DIR", "--out", "--quote", "--check", "kfbench report docs/results --out site"]),
        (["data", "--help"], ["fetch", "check", "list"]),
        (["data", "check", "--help"], ["NAME", "--data-dir"]),
        (["--version"], ["kfbench 0."]),
        (["list"], [*METHODS, *MODELS, *DATASETS]),
        (["list", "--cite"], ["Benzing 2022", "Martens & Grosse 2015", "Kingma & Ba 2015", "Xiao"]),
        (["list", "--defaults"], ["T=100", f"damping={METHODS['foof'].options['damping']}"]),
        (["list"], ["synthetic images of curves"]),
        (["data", "list"], ["fashion-mnist-1k", "mnist", "60000", "curves", "synthetic", "kfbench data fetch curves"]),
        (["data", "check", "fashion-mnist-1k"], ["train-images-idx3-ubyte.gz", "ok"]),
    ],
    ids=" ".join,
)
def test_answers(kfbench, arguments, parts, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "empty")  # what was fetched on this machine is no part of the answer
    code, out, err = kfbench(*arguments)
    assert (code, err) == (0, "")
    for part in parts:
        assert part in out


def test_every_name_is_listed_with_its_paper_in_every_format(kfbench):
    rows = list(csv.DictReader(io.StringIO(kfbench("list", "--cite", "--format", "csv")[1])))
    assert rows == json.loads(kfbench("list", "--cite", "--format", "json")[1])["names"]
    assert [row["name"] for row in rows] == [*METHODS, *MODELS, *DATASETS]
    assert all(row["paper"] and row["what"] for row in rows)
    assert kfbench("list", "--cite", "--format", "markdown")[1].count("\n") == len(rows) + 2


@pytest.mark.parametrize("command", ["train", "sweep", "compare", "wallclock", "similarity"])
def test_help_is_one_screen_and_its_examples_are_commands(kfbench, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = kfbench(command, "-h")
    lines = out.splitlines()
    assert (code, err) == (0, "") and len(lines) <= 24 and max(map(len, lines)) <= 80
    examples = [line.split() for line in lines if line.startswith(f"  kfbench {command}")]
    assert len(examples) == 4
    everything = kfbench(command, "--help-all")[1]
    shown = re.findall(r"(?m)^  (--[\w-]+|-\w)", out)
    for flag in {word for words in examples for word in words if word.startswith("-")} | set(shown) - {"--help-all"}:
        assert re.search(rf"(?m){flag}\b", everything), f"{flag} is no option of {command}"


@pytest.mark.parametrize("arguments", [[], ["data"]], ids=["kfbench", "data"])
def test_no_arguments_show_the_help_and_no_empty_error(kfbench, arguments):
    code, out, err = kfbench(*arguments)
    assert code == 2 and "Usage:" in out and err == ""


_WITHOUT_TORCH = """
import contextlib, io, json, os, sys
from kfbench.cli.app import main
os.environ["COLUMNS"] = "200"
answers = []
def answer(arguments, **environment):
    sys.argv = ["kfbench", *arguments]
    os.environ.update(environment)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as error:
            code = error.code
    heavy = sorted({"torch", "torchvision", "matplotlib", "pandas", "ray", "submitit"} & set(sys.modules))
    answers.append([arguments, code, heavy, out.getvalue()])
for arguments in (["--help"], ["train", "-h"], ["sweep", "--help"], ["compare", "--help-all"], ["similarity", "--help"],
                  ["data", "--help"], ["report", "--help"], ["list"], ["--version"], ["--bogus"],
                  ["train", "--opt", "foof", "--lr", "-1"],
                  ["sweep", "lr", "--grid", "lr=2:1:decades"], ["sweep", "lr", "--ray-address", "auto"],
                  ["compare", "--executor", "ray", "--trial-cpus", "0"], ["report", "nowhere", "--out", "site"]):
    answer(arguments)
for words in ("kfbench tr", "kfbench train --opt fo", "kfbench train --dataset fash", "kfbench train --damp"):
    answer([], _KFBENCH_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
print(json.dumps(answers))
"""


def test_help_lists_completion_and_refusals_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TORCH], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for arguments, _, heavy, text in answers:
        assert heavy == [], f"{arguments} imported {heavy}"
        assert text, f"{arguments} said nothing"
    assert [code for _, code, _, _ in answers[:15]] == [0] * 9 + [2] * 6
    completed = [text.split() for *_, text in answers[15:]]
    assert completed == [
        ["train"],
        [name for name in METHODS if name.startswith("foof")],
        ["fashion-mnist-1k", "fashion-mnist"],
        ["--damping", "--damping-kind", "--damping-init"],
    ]


def test_python_m_kfbench_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "kfbench", "bogus"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "Error: No such command 'bogus'.\n")


# Wrong use.


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a run, a file, a folder of somebody else's, configurations and a module of the user's."""
    place = tmp_path / "work"
    (place / "foreign").mkdir(parents=True)
    (place / "foreign" / "thesis.tex").write_text("years of work")
    (place / "file").write_text("precious")
    (place / "run" / "seed-0").mkdir(parents=True)
    (place / "run" / "config.yaml").write_text("problem: {}\nmethods: [foof]\nrun: {}\n")
    (place / "typo.yaml").write_text("problem: {datset: mnist}")
    (place / "scalar.yaml").write_text("foof")
    (place / "updates.yaml").write_text("run: {updates: 5, epochs: 5}")
    (place / "two.yaml").write_text("methods: [foof, kfac]")
    (place / "broken_module.py").write_text("import nothing_of_this_name")
    shutil.copy(Path(__file__).parent / "user_things.py", place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return place


_FOOF = ["train", "--opt", "foof", *QUICK]
_SGD = ["train", "--opt", "sgd", *QUICK]
_WRONG = [
    (["bogus"], "No such command 'bogus'"),
    (["trian"], "Did you mean 'train'?"),
    (["--bogus"], "No such option: --bogus"),
    (["sweep", "lr", "--executor", "cloud"], "executor should be 'processes', 'ray' or 'slurm', got 'cloud'"),
    (["sweep", "lr", "--executor", "ray", "--trial-gpus", "-1"], "trial_gpus should be greater than or equal to 0"),
    (["compare", "--executor", "ray", "--trial-cpus", "nan"], "trial_cpus should be a finite number, got 'nan'"),
    (["compare", "--ray-address", "auto"], "ray_address auto is of --executor ray, got --executor processes"),
    (["list", "extra"], "unexpected extra argument"),
    (["list", "--format", "xml"], "'xml' is not one of"),
    (["data", "check"], "Missing argument 'NAME'"),
    (["data", "check", "mnits"], "did you mean 'mnist'?"),
    (["data", "check", "mnist"], "was not found in"),
    (["data", "fetch", "fashion-mnist-1k"], "nothing to fetch"),
    (["data", "bogus"], "No such command 'bogus'"),
    (
        ["data", "check", "faces"],
        "download it from https://www.cs.toronto.edu/~jmartens/newfaces_rot_single.mat, or po",
    ),
    (["data", "fetch", "curves-original", "--data-dir", "d"], "digs3pts_1.mat into d/curves-original"),
    (["data", "check", "curves"], "generate it with 'kfbench data fetch curves'"),
    (["data", "fetch", "curves", "--data-dir", "file"], "file: File exists"),
    (["train", *QUICK], "no method given"),
    (["train", "extra", "--opt", "sgd"], "unexpected extra argument"),
    ([*_SGD, "--bogus", "1"], "No such option: --bogus"),
    ([*_SGD, "--lr"], "'--lr' requires an argument"),
    (["train", "--opt", "fofo"], "did you mean 'foof'?"),
    (["train", "--opt", "foof", "--opt", "kfac"], "train takes one method, got 2: foof, kfac"),
    (["train", "--config", "two.yaml"], "train takes one method"),
    ([*_SGD, "--model", "mpl"], "did you mean 'mlp'?"),
    ([*_SGD, "--dataset", "mnits"], "did you mean 'mnist'?"),
    ([*_SGD, "--dataset", "mnist"], "kfbench data fetch mnist"),
    ([*_SGD, "--lr", "-1"], "lr should be greater than 0, got '-1'"),
    ([*_SGD, "--lr", "abc"], "lr should be a valid number"),
    ([*_SGD, "--lr", "nan"], "lr should be a finite number"),
    ([*_SGD, "--damping", "1"], "'sgd' has no option 'damping'"),
    ([*_FOOF, "--T", "0"], "T should be greater than or equal to 1, got '0'"),
    ([*_FOOF, "--T", "10", "--S", "11"], "S must be at most T = 10, got 11"),
    ([*_FOOF, "--T", "1", "--T", "10"], "train takes one value of --T, got 1, 10"),
    ([*_FOOF, "--seeds", "0"], "seeds should be greater than or equal to 1"),
    ([*_FOOF, "--batch-size", "1001"], "batch_size is 1001, above the 1000 training samples"),
    ([*_FOOF, "--train-samples", "50"], "batch_size is 100, above the 50 training samples"),
    ([*_FOOF, "--train-samples", "1001"], "train_samples is 1001, the data set has 1000"),
    ([*_FOOF, "--epochs", "1", "--updates", "1"], "epochs or updates, not both"),
    ([*_FOOF, "--set", "run.sead=1"], "did you mean 'seed'?"),
    ([*_FOOF, "--set", "run.seed"], "--set takes a.b=c"),
    ([*_FOOF, "--config", "typo.yaml"], "did you mean 'dataset'?"),
    ([*_FOOF, "--config", "scalar.yaml"], "must be a mapping"),
    ([*_FOOF, "--config", "updates.yaml"], "epochs or updates, not both"),
    ([*_FOOF, "--config", "missing.yaml"], "config missing.yaml cannot be read"),
    ([*_FOOF, "--config", "foreign"], "config foreign cannot be read"),
    ([*_FOOF, "--device", "cuda:7"], "device 'cuda:7' cannot be used"),
    ([*_FOOF, "--device", "banana"], "device 'banana' cannot be used"),
    ([*_FOOF, "--device", "meta"], "device 'meta' cannot be used"),
    ([*_FOOF, "--eval-samples", "1001"], "eval_samples is 1001, above"),
    ([*_FOOF, "--resume"], "--resume needs --out DIR"),
    ([*_FOOF, "--resume", "--out", "foreign"], "foreign holds no run"),
    ([*_FOOF, "--resume", "--out", "missing"], "missing holds no run"),
    ([*_FOOF, "--resume", "--overwrite", "--out", "run"], "not both"),
    ([*_FOOF, "--out", "run"], "give --resume to continue it or --overwrite to replace it"),
    ([*_FOOF, "--out", "foreign"], "--out foreign exists"),
    ([*_FOOF, "--out", "file"], "--out file is a file, expected a folder"),
    ([*_FOOF, "--out", "file/inside"], "Not a directory"),
    ([*_FOOF, "--overwrite", "--out", "file"], "--out file is a file"),
    ([*_FOOF, "--overwrite", "--out", "foreign"], "foreign is no output folder of kfbench"),
    ([*_FOOF, "--overwrite", "--out", "run", "--device", "banana"], "'banana' cannot be used"),
    ([*_FOOF, "--out", "deep/er", "--device", "banana"], "'banana' cannot be used"),
    (["train", "--opt", "user_things:function"], "expected a class"),
    (["train", "--opt", "user_things:PlainClass"], "neither a torch.optim.Optimizer nor a preconditioner"),
    (["train", "--opt", "user_things:Missing"], "has no attribute 'Missing'"),
    (["train", "--opt", "user_things:Raises", *QUICK], "raised on construction with lr=0.1: the first line the second"),
    (["train", "--opt", "torch.optim:LBFGS", "--clip-norm", "1"], "evaluates gradients within its step, where none is"),
    (
        ["similarity", "--follow", "torch.optim:LBFGS", *QUICK],
        "within its step: no direction of it to ask",
    ),
    (["similarity", "--follow", "foof", "--opt", "torch.optim:LBFGS", *QUICK], "no direction of it to ask"),
    (["wallclock", "--opt", "torch.optim:LBFGS", "--optimizer-only", *QUICK], "within its step: no --optimizer-only"),
    (["train", "--opt", "torch.optim:SGD:lrr=1"], "did you mean 'lr'?"),
    (["train", "--opt", "torch.optim:Adam:betas=3", *QUICK], "raised on construction with"),
    (["train", "--opt", "broken_module:X"], "importing broken_module failed"),
    (["train", "--opt", "no_module_of_this_name:X"], "importing no_module_of_this_name failed"),
    ([*_SGD, "--dataset", "user_things:data_raises"], "could not be made: ValueError: no data"),
    ([*_SGD, "--dataset", "user_things:data_not_a_number"], "x_train holds 1 number not finite (nan or infinite)"),
    ([*_SGD, "--dataset", "user_things:missing"], "has no attribute 'missing'"),
    ([*_SGD, "--dataset", "missing.npz"], "data set 'missing.npz' was not found: there is no such file"),
    ([*_SGD, "--dataset", "table.csv"], "package.module:function, or a file .npz, .safetensors or .txt"),
    ([*_SGD[:-2], "--model", "user_things:missing"], "has no attribute 'missing'"),
    ([*_SGD[:-2], "--model", "user_things:model_raises"], "could not be built: ValueError: no such model today"),
    ([*_SGD[:-2], "--model", "user_things:model_is_text"], "returned a str, expected a torch.nn.Module"),
    ([*_SGD[:-2], "--model", "user_things:model_without_parameters"], "has no trainable parameter"),
    ([*_SGD[:-2], "--model", "user_things:model_of_wrong_shape"], "returns shape [2, 11], expected [2, 10]"),
    ([*_SGD[:-2], "--model", "user_things:model_for_other_inputs"], "fails on a batch: RuntimeError"),
    (["train", "--opt", "sgd", "--quick", "--model", "logistic", "--width", "5"], "model 'logistic' has no option"),
    (
        [*_SGD, "--dataset", "curves"],
        "data set 'curves' has no labels for model 'mlp' to learn; use --model autoencoder",
    ),
    (
        [*_SGD, "--likelihood", "bernouli"],
        "likelihood should be 'categorical', 'gaussian' or 'bernoulli', got 'bernouli'",
    ),
    ([*_SGD, "--model", "autoencoder", "--likelihood", "categorical"], "takes likelihood 'gaussian' or 'bernoulli'"),
    ([*_SGD, "--model", "autoencoder-sigmoid", "--normalize", "mnist"], "normalize must be 'unit', got 'mnist'"),
    ([*_SGD[:-2], "--model", "user_things:model_for_images", "--likelihood", "gaussian"], "the inputs flattened"),
    ([*_SGD, "--clip-norm", "0"], "clip_norm should be greater than 0, got '0'"),
    ([*_SGD, "--lr-step-epochs", "2"], "lr_step_epochs needs lr_schedule 'step'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), _WRONG, ids=[" ".join(a) for a, _ in _WRONG])
def test_wrong_use_is_one_sentence_and_leaves_nothing(kfbench, workplace, arguments, sentence):
    before = tree(workplace.parent)
    code, out, err = kfbench(*arguments)
    assert code == 2
    assert err.startswith("Error: ") and err.endswith("\n") and len(err.splitlines()) == 1, err
    assert sentence in err
    assert "Traceback" not in out + err and out == ""
    assert tree(workplace.parent) == before, "something was left behind or changed"


def test_debug_shows_the_traceback_and_the_sentence(kfbench, workplace):
    code, _, err = kfbench(*_FOOF, "--batch-size", "1001", "--debug")
    assert code == 2
    assert err.startswith("Traceback") and err.splitlines()[-1].startswith("Error: batch_size is 1001")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("a\nb"), 2, "Error: a b"),
        (OSError(28, "No space left on device", "x/updates.csv"), 2, "x/updates.csv: No space left on device"),
        (KeyboardInterrupt(), 130, "Error: interrupted"),
        (EOFError("pipe"), 3, "Error: internal error, EOFError: pipe"),
        (ZeroDivisionError("a\nb"), 3, "Error: internal error, ZeroDivisionError: a b (run again with --debug"),
        (SystemExit(), 3, "Error: SystemExit, raised by a method, model or library"),
        (SystemExit(7), 3, "Error: SystemExit: 7, raised by a method, model or library"),
        (SystemExit("a user's\nsentence"), 3, "Error: SystemExit: a user's, raised by"),
    ],
    ids=repr,
)
def test_whatever_a_command_raises(kfbench, monkeypatch, error, code, sentence):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("kfbench.results.tables.print_table", fail)
    found, _, err = kfbench("list")
    assert found == code
    assert sentence in err and len(err.strip().splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error():
    """As in ``kfbench list | head -1``."""
    arguments = [sys.executable, "-m", "kfbench", "list"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()


# What works, from end to end.


def test_a_quick_run(kfbench, workplace):
    code, out, err = kfbench(*_FOOF, "--out", "new", "--format", "json", "--lr", "0.1")
    assert code == 0 and "quick run: not for comparison" in err and "records: new" in err
    assert json.loads(out) == json.loads((workplace / "new" / "summary.json").read_text())
    assert json.loads(out)["runs"][0]["updates"] == 20
    names = {path.name for path in (workplace / "new").rglob("*") if path.is_file()}
    assert names == {"config.yaml", "environment.json", "summary.json", "updates.csv", "epochs.csv", "checkpoint.pt"}


def test_overwrite_replaces_the_run(kfbench, workplace):
    code, _, _ = kfbench(*_SGD, "--out", "run", "--overwrite", "--updates", "1")
    assert code == 0 and (workplace / "run" / "summary.json").exists()
    assert "opt: sgd" in (workplace / "run" / "config.yaml").read_text()
    assert [path.name for path in workplace.iterdir() if "replaced" in path.name] == []


@pytest.mark.parametrize("opt", ["foof", "torch.optim:Adam"])
def test_interrupted_and_resumed(kfbench, workplace, monkeypatch, opt):
    """Ctrl-C keeps what was done; --resume needs no flag but --out, also where an option is a tuple."""
    (workplace / "press-ctrl-c").write_text("")
    monkeypatch.setattr("sys.modules", {k: v for k, v in sys.modules.items() if k != "user_things"})
    code, _, err = kfbench("train", "--opt", opt, "--quick", "--model", "user_things:model_interrupts", "--out", "new")
    assert code == 130 and "continue with: kfbench train --resume --out new" in err
    kept = (workplace / "new" / "seed-0" / "updates.csv").read_text()
    assert 1 < len(kept.splitlines()) < 21
    code, _, err = kfbench("train", "--resume", "--out", "new")
    assert code == 0, err
    rows = list(csv.DictReader((workplace / "new" / "seed-0" / "updates.csv").open()))
    assert [int(row["update"]) for row in rows] == list(range(20))


def test_a_diverged_run_is_a_result_with_exit_code_3_also_when_resumed(kfbench, workplace):
    arguments = [*_SGD, "--lr", "1e30", "--out", "new"]
    for extra in ([], ["--resume"]):
        code, out, err = kfbench(*arguments, *extra)
        assert code == 3 and "diverged" in err and "Traceback" not in err
        assert "inf" in out


def test_yaml_flags_and_set_meet(kfbench, workplace):
    (workplace / "c.yaml").write_text("run: {seed: 1}\nproblem: {width: 20}\nmethods: ['foof:lr=0.1']\nsweep: {x: 1}\n")
    code, _, _ = kfbench("train", "--config", "c.yaml", "--quick", "--set", "methods.0.damping=1e-1", "--out", "new")
    assert code == 0
    text = (workplace / "new" / "config.yaml").read_text()
    assert "damping: 0.1" in text and "seed: 1" in text and (workplace / "new" / "seed-1").is_dir()
