"""The configuration: what wins over what, what is refused and with which sentence, and that nothing crashes it."""

import math
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kfbench.config.load import dump, load_config
from kfbench.config.method_table import METHODS
from kfbench.config.problem_table import DATASETS, MODELS
from kfbench.config.schema import COMMAND_BLOCKS, MethodOptions, Problem, Run
from kfbench.config.specs import parse_spec
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import KfbenchError, UsageError
from tests.fuzzing import fuzz, result_or_one_sentence

_USER_MODULE = """
from torch.optim import SGD, Optimizer

class WithTuple(SGD):
    def __init__(self, params, lr=0.1, betas=(0.9, 0.99)):
        super().__init__(params, lr)

class WithObject(SGD):
    "{blank}"
    def __init__(self, params, lr=0.1, chooser=print, nesterov=True, *more):
        super().__init__(params, lr)

class Open(SGD):
    def __init__(self, params, **options):
        super().__init__(params, **options)
"""


@pytest.fixture
def config_file(tmp_path):
    """Write text or bytes to a file; returns its path."""

    def write(content):
        path = tmp_path / "config.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's with odd optimizers; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_optimizers.py").write_text(_USER_MODULE.format(blank=" "))
    return "odd_optimizers"


def option(config, key, method=0):
    return config.methods[method].options[key]


# Precedence: defaults < file < flags < --set; a SPEC wins over a flag.


@pytest.mark.parametrize(
    ("file", "flags", "assignments", "expected"),
    [
        ("", {}, [], 100),
        ("run: {batch_size: 10}", {}, [], 10),
        ("run: {batch_size: 10}", {"batch_size": "20"}, [], 20),
        ("run: {batch_size: 10}", {"batch_size": "20"}, ["run.batch_size=30"], 30),
        ("", {"batch_size": 20}, ["run.batch_size=30", "run.batch_size=40"], 40),
        ("", {}, ["run={batch_size: 50}"], 50),
        ("run:", {}, ["run.batch_size=60"], 60),
        ("run: {batch_size: 10}", {"batch_size": None}, [], 10),
    ],
)
def test_what_comes_later_wins(config_file, file, flags, assignments, expected):
    assert load_config(config_file(file), flags, ["sgd"], assignments).run.batch_size == expected


@pytest.mark.parametrize(
    ("methods", "specs", "flags", "assignments", "expected"),
    [
        ("[sgd]", [], {}, [], METHODS["sgd"].options["lr"]),
        ("[{opt: sgd, lr: 0.2}]", [], {}, [], 0.2),
        ("['sgd:lr=0.2']", [], {"lr": "0.3"}, [], 0.3),
        ("[{opt: sgd, lr: 0.2}]", [], {"lr": "0.3"}, [], 0.3),
        ("[sgd]", ["sgd:lr=0.2"], {"lr": "0.3"}, [], 0.2),
        ("[sgd]", [], {"lr": "0.3"}, [], 0.3),
        ("['sgd:lr=0.2']", ["sgd"], {}, [], METHODS["sgd"].options["lr"]),
        ("[adam]", ["sgd:lr=0.4"], {"lr": "0.3"}, [], 0.4),
        ("[{opt: sgd, lr: 0.2}]", [], {"lr": "0.3"}, ["methods.0.lr=0.5"], 0.5),
        ("['sgd:lr=0.2']", [], {}, ["methods.0.lr=0.5"], 0.5),
        ("[adam]", ["sgd:lr=0.4"], {}, ["methods.0.lr=0.5"], 0.5),
        ("[{opt: sgd, lr: null}]", [], {}, [], METHODS["sgd"].options["lr"]),
        ("[{opt: sgd, lr: null}]", [], {"lr": "0.3"}, [], 0.3),
        ("['sgd:lr=none']", [], {}, [], METHODS["sgd"].options["lr"]),
    ],
)
def test_a_spec_wins_over_a_flag(config_file, methods, specs, flags, assignments, expected):
    config = load_config(config_file(f"methods: {methods}"), flags, specs, assignments)
    assert [option(config, "lr")] == [expected] and len(config.methods) == 1


def test_a_flag_for_T_drops_the_S_of_the_file(config_file):
    """S was spelled out for the file's T; the default follows the new one."""
    config = load_config(config_file("methods: [{opt: foof, T: 100, S: 50}]"), {"T": "10"})
    assert (option(config, "T"), option(config, "S")) == (10, 10)


def test_a_flag_is_the_default_of_every_spec_that_has_it():
    config = load_config(flags={"damping": "0.5", "lr": "0.1"}, specs=["sgd", "foof", "kfac:damping=2"])
    assert [method.options.get("damping") for method in config.methods] == [None, 0.5, 2.0]
    assert [method.options["lr"] for method in config.methods] == [0.1] * 3


def test_blocks_of_other_commands_are_ignored(config_file):
    text = "\n".join(f"{block}: {{anything: 1}}" for block in COMMAND_BLOCKS)
    assert load_config(config_file(text), specs=["sgd"]) == load_config(specs=["sgd"])


@pytest.mark.parametrize(
    ("file", "flags", "assignments", "expected"),
    [
        ("", {}, [], (30, None)),
        ("problem: {dataset: fashion-mnist}", {}, [], (10, None)),
        ("run: {updates: 7}", {}, [], (None, 7)),
        ("run: {updates: 7}", {"epochs": "3"}, [], (3, None)),
        ("run: {epochs: 7}", {"updates": "3"}, [], (None, 3)),
        ("run: {epochs: 7}", {}, ["run.updates=3"], (None, 3)),
        ("", {"updates": "7"}, ["run.epochs=3"], (3, None)),
        ("run: {epochs: 7}", {"quick": True}, [], (None, 20)),
    ],
)
def test_budget(config_file, file, flags, assignments, expected):
    run = load_config(config_file(file), flags, ["sgd"], assignments).run
    assert (run.epochs, run.updates) == expected


# SPECs.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("foof", ("foof", {})),
        ("foof:lr=1e-3", ("foof", {"lr": 1e-3})),
        ("foof:lr=.3,T=1,S=1", ("foof", {"lr": 0.3, "T": 1, "S": 1})),
        ("kfac:damping_kind=standard-as-released", ("kfac", {"damping_kind": "standard-as-released"})),
        ("my.module:Class", ("my.module:Class", {})),
        ("my.module:Class:lr=1", ("my.module:Class", {"lr": 1})),
        ("m:C:betas=(0.9,0.99),lr=1", ("m:C", {"betas": (0.9, 0.99), "lr": 1})),
        ("m:C:betas=[0.9,0.99]", ("m:C", {"betas": [0.9, 0.99]})),
        ("m:C:pairs=((1,2),(3,4)),lr=1", ("m:C", {"pairs": ((1, 2), (3, 4)), "lr": 1})),
        ("m:C:path=a:b", ("m:C", {"path": "a:b"})),
        ("m:C:text=a=b", ("m:C", {"text": "a=b"})),
        ("m:C:on=true,off=False,no=none", ("m:C", {"on": True, "off": False, "no": None})),
        ("m:C:z=1j", ("m:C", {"z": "1j"})),
        ({"opt": "foof", "lr": 0.1}, ("foof", {"lr": 0.1})),
    ],
)
def test_parse_spec(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        *("", ":", ":lr=1", "lr=1", "foof:lr=", "foof:=1", "foof:lr=1,T", "foof:lr=1,lr=2", "foof:lr=(1,2"),
        *("foof:lr=1)", "foof:lr=1,,T=1", "foof:lr=1,"),
        *(None, 3, [], ["foof"], {}, {"lr": 1}, {"opt": 3}, {"opt": ""}, {"opt": "foof", 1: 2}),
    ],
    ids=repr,
)
def test_malformed_specs_are_refused(spec):
    with pytest.raises(UsageError):
        parse_spec(spec)


def test_a_spec_makes_no_warning_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_spec(r"m:C:path=a\d") == ("m:C", {"path": r"a\d"})
        assert parse_spec("m:C:n=1if") == ("m:C", {"n": "1if"})


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["foof"], ["foof"]),
        (["foof:lr=0.5"], ["foof"]),
        (["foof", "kfac:lr=0.5"], ["foof", "kfac"]),
        (["foof:lr=0.5", "foof:lr=0.25"], ["foof-lr=0.5", "foof-lr=0.25"]),
        (["foof:lr=0.1", "foof:T=10,lr=0.25", "sgd"], ["foof-lr=0.1-T=100", "foof-lr=0.25-T=10", "sgd"]),
        (["torch.optim:SGD", "torch.optim:Adam"], ["torch.optim.SGD", "torch.optim.Adam"]),
    ],
)
def test_labels_name_what_differs(specs, expected):
    assert [method.label for method in load_config(specs=specs).methods] == expected


# Types.


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".1e-2", "+1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_scientific_notation_is_a_number(config_file, text):
    assert option(load_config(config_file(f"methods: [{{opt: sgd, lr: {text}}}]")), "lr") == 1e-3
    assert option(load_config(specs=["sgd"], assignments=[f"methods.0.lr={text}"]), "lr") == 1e-3


def test_plain_yaml_knows_the_number_without_quotes(config_file):
    assert read_yaml(config_file("a: 1e-3\nb: -2E+4\nc: e3\nd: 1e\ne: 12")) == {
        "a": 1e-3,
        "b": -2e4,
        "c": "e3",
        "d": "1e",
        "e": 12,
    }


_BOOLEAN_OPTIONS = ("nesterov", "block_diagonal", "warm_start", "muon_nesterov")
_NOT_BOOLEAN = [
    *(("problem", key) for key in Problem.model_fields if key not in ("bias", "tied")),
    *(("run", key) for key in Run.model_fields if key not in ("deterministic", "quick")),
    *(("methods.0", key) for key in MethodOptions.model_fields if key not in _BOOLEAN_OPTIONS),
]


@pytest.mark.parametrize(("section", "key"), _NOT_BOOLEAN)
@pytest.mark.parametrize("value", ["true", "no"])
def test_a_boolean_is_no_number_and_no_text(section, key, value):
    opt = next(name for name, entry in METHODS.items() if section != "methods.0" or entry.accepts(key))
    with pytest.raises(UsageError, match=f"{key} should be"):
        load_config(specs=[opt], assignments=[f"{section}.{key}={value}"])


# What is refused, and that the sentence names the key and the value received.

_REFUSED = [
    # file, flags, specs, --set, what the sentence says
    ("probelm: {}", {}, ["sgd"], [], "'probelm' (did you mean 'problem'?)"),
    ("", {}, ["sgd"], ["rum.seed=1"], "'rum' (did you mean 'run'?)"),
    ("problem: {datset: x}", {}, ["sgd"], [], "'datset' (did you mean 'dataset'?)"),
    ("run: {seads: 1}", {}, ["sgd"], [], "'seads' (did you mean 'seeds'?)"),
    ("methods: [{opt: foof, dampin: 1}]", {}, [], [], "'dampin' (did you mean 'damping'?)"),
    ("", {}, ["foof:dampng=1"], [], "'dampng' (did you mean 'damping'?)"),
    ("", {}, ["foff"], [], "'foff' (did you mean 'foof'?)"),
    ("", {"dataset": "fashon-mnist"}, ["sgd"], [], "(did you mean 'fashion-mnist'?)"),
    ("", {"model": "logistc"}, ["sgd"], [], "(did you mean 'logistic'?)"),
    ("", {"model": "logistic", "width": "5"}, ["sgd"], [], "model 'logistic' has no option 'width'"),
    (
        "",
        {"dataset": "svhn", "normalize": "mnist"},
        ["sgd"],
        [],
        "colour images, which take 'published', 'own' or 'unit'",
    ),
    ("", {"normalize": "published"}, ["sgd"], [], "grey images, which take 'mnist', 'own' or 'unit' as normalize, got"),
    (
        "",
        {"dataset": "faces", "likelihood": "bernoulli"},
        ["sgd"],
        [],
        "'faces' has real-valued ones, which take 'gauss",
    ),
    *(
        (
            "",
            {"dataset": "faces", "model": "autoencoder", "normalize": n},
            ["sgd"],
            [],
            f"or 'own' as normalize, got '{n}'",
        )
        for n in ("mnist", "unit")
    ),
    ("", {"model": "autoencoder", "augment": "flip"}, ["sgd"], [], "augment 'flip' varies images that have labels"),
    ("", {"augment": "rotate"}, ["sgd"], [], "augment should be 'none', 'flip', 'crop' or 'flip-crop', got 'rotate'"),
    ("", {"norm": "batch"}, ["sgd"], [], "model 'mlp' has no option 'norm'; it has width, bias"),
    ("", {"model": "vgg11", "init": "xavier"}, ["sgd"], [], "init should be 'he' or 'careful'"),
    ("", {"dataset": "curves"}, ["sgd"], [], "data set 'curves' has no labels for model 'mlp' to learn"),
    ("", {"dataset": "curves", "model": "math:sqrt"}, ["sgd"], [], "has no labels for model 'math:sqrt' to learn"),
    ("", {"model": "autoencoder", "likelihood": "categorical"}, ["sgd"], [], "takes likelihood 'gaussian' or"),
    ("", {"model": "autoencoder-sigmoid", "normalize": "own"}, ["sgd"], [], "must be 'unit', got 'own'"),
    ("", {"likelihood": "bernoulli", "normalize": "mnist"}, ["sgd"], [], "must be 'unit', got 'mnist'"),
    ("", {"likelihood": "poisson"}, ["sgd"], [], "likelihood should be 'categorical', 'gaussian' or 'bernoulli'"),
    ("", {"lr_step_epochs": "20"}, ["sgd"], [], "lr_step_epochs needs lr_schedule 'step', got 'constant'"),
    ("", {"warmup_updates": "5"}, ["sgd"], [], "need each other, got 'constant' with warmup_updates 5"),
    ("", {"lr_schedule": "cosine"}, ["adam:warmup_updates=5"], [], "got 'cosine' with warmup_updates 5"),
    ("", {"lr_schedule": "linear-warmup-cosine"}, ["foof"], [], "and warmup_updates need each other, got None"),
    (
        "",
        {"lr_schedule": "linear-warmup-cosine", "warmup_updates": "5", "lr_decay": "0.5"},
        ["sgd"],
        [],
        "lr_decay is of lr_schedule 'step' or 'exp', got lr_decay 0.5 with 'linear-warmup-cosine'",
    ),
    ("", {"warmup_updates": "0"}, ["sgd"], [], "warmup_updates should be greater than or equal to 1, got '0'"),
    ("", {"warmup_updates": "5"}, ["foof:step=rescale"], [], "step 'rescale' finds warmup_updates itself, got"),
    ("", {"lr_schedule": "cosine"}, ["foof:step=rescale"], [], "step 'rescale' finds lr_schedule itself, got"),
    ("", {"clip_decay": "0.1"}, ["kfac"], [], "clip_decay needs a clip_norm"),
    ("", {"T": "5"}, ["sgd"], [], "'sgd' has no option 'T', as --T was given"),
    ("", {"damping_kind": "standard"}, ["sgd", "foof"], [], "as --damping-kind was given"),
    ("", {"epochs": "1", "updates": "2"}, ["sgd"], [], "epochs or updates, not both: got epochs 1 and updates 2"),
    ("run: {epochs: 1, updates: 2}", {}, ["sgd"], [], "epochs or updates, not both"),
    ("run: {epochs: 1, updates: 2}", {}, ["sgd"], ["run.seed=1"], "epochs or updates, not both"),
    ("", {}, ["sgd"], ["run.epochs=1", "run.updates=2"], "epochs or updates, not both"),
    ("", {"quick": True, "epochs": "1", "updates": "2"}, ["sgd"], [], "not both"),
    ("", {"S": "11", "T": "10"}, ["foof"], [], "S must be at most T = 10, got 11"),
    ("", {"S": "101"}, ["foof"], [], "S must be at most T = 100, got 101"),
    ("", {"S": "5"}, ["foof", "kfac:T=4"], [], "'kfac': S must be at most T = 4, got 5"),
    ("", {"nesterov": True}, ["foof"], [], "nesterov needs a momentum above 0"),
    ("", {"momentum_after_epoch": "1"}, ["kfac"], [], "momentum_after_epoch needs a momentum above 0, got 0.0"),
    ("", {"momentum_after_epoch": "1"}, ["adam"], [], "'adam' has no option 'momentum_after_epoch'"),
    ("", {"micro_batch_size": "101"}, ["sgd"], [], "micro_batch_size is 101, above the batch_size of 100"),
    ("", {}, [], [], "no method given"),
    ("methods: foof", {}, [], [], "methods must be a list"),
    ("methods: []", {}, [], [], "methods must be a list"),
    ("methods: {opt: foof}", {}, [], [], "methods must be a list"),
    ("problem: [1]", {}, ["sgd"], [], "section 'problem' must be a mapping, got [1]"),
    ("run: 3", {"seed": "1"}, ["sgd"], [], "section 'run' must be a mapping, got 3"),
    ("run: {1: 2}", {}, ["sgd"], [], "unknown key '1'"),
    ("", {}, ["sgd"], ["run.seed"], "--set takes a.b=c"),
    ("", {}, ["sgd"], ["run..seed=1"], "--set takes a.b=c"),
    ("", {}, ["sgd"], ["=1"], "--set takes a.b=c"),
    ("run: {seed: 3}", {}, ["sgd"], ["run.seed.x=1"], "'run.seed' is no section"),
    ("", {}, ["sgd"], ["run.seed.x=1"], "seed should be a valid integer, got {'x': 1}"),
    ("", {}, ["sgd"], ["methods.1.lr=1"], "is no section"),
    ("", {}, ["sgd"], ["methods.lr=1"], "is no section"),
    ("", {}, ["sgd"], ["run.seed=[1"], "--set"),
    ("", {}, ["sgd"], ["run.seed=2020-99-99"], "--set"),
    ("", {}, ["sgd"], ["run.seed=!!int ''"], "--set"),
    ("", {}, ["foof", "foof"], [], "'foof' is given twice"),
    ("", {}, ["torch.optim"], [], "unknown method 'torch.optim'"),
    ("", {}, ["torch.optim:Nothing"], [], "has no attribute 'Nothing'"),
    ("", {}, ["no_such_module:X"], [], "importing no_such_module failed"),
    ("", {}, ["math:sqrt"], [], "expected a class"),
    ("", {}, ["fractions:Fraction"], [], "neither a torch.optim.Optimizer nor a preconditioner: it lacks orders"),
]


@pytest.mark.parametrize(("file", "flags", "specs", "assignments", "sentence"), _REFUSED, ids=[r[-1] for r in _REFUSED])
def test_refused(config_file, file, flags, specs, assignments, sentence):
    with pytest.raises(UsageError) as caught:
        load_config(config_file(file), flags, specs, assignments)
    assert sentence in str(caught.value)


_OUT_OF_RANGE = [
    *(("foof", key, value) for key in ("lr", "damping") for value in ("-1", "nan", "inf", "-inf", "1e999", "abc", "")),
    *(("foof", key, value) for key in ("T", "S") for value in ("0", "-1", "1.5", "nan", "inf", "1e400", "x")),
    *(("foof", "ema", value) for value in ("-0.1", "1", "1.5", "nan")),
    *(("foof", "momentum", value) for value in ("-0.1", "1")),
    *(("sgd", "momentum_after_epoch", value) for value in ("0", "1.5", "true")),
    *(("foof", "lr", "0"), ("foof", "warmup_batches", "-1"), ("foof", "order", "other"), ("foof", "lr_decay", "0")),
    *(("foof", "lr_decay", "1.1"), ("foof", "lr_schedule", "linear"), ("foof", "weight_decay", "-1")),
    *(("adam", "clip_norm", value) for value in ("0", "-1", "inf", "true")),
    *(("adam", key, value) for key, value in (("clip_decay", "0"), ("clip_decay", "1.1"), ("lr_step_epochs", "0"))),
    *(("kfac", "fisher", value) for value in ("none", "true", "1", "Sampled")),
    ("kfac", "damping_kind", "adjusted"),
    *(("kflr", "fisher_columns", value) for value in ("0", "1.5", "true")),
    *(("ekfac", "damping_init", "pi"), ("ekfac-ra", "scale_decay", "1"), ("foof-kfac-damping", "rescale", "norm")),
    *(("sgd", key, "0") for key in ("seeds", "epochs", "updates", "batch_size", "micro_batch_size", "threads")),
    *(("sgd", key, "0") for key in ("width", "train_samples", "eval_samples", "pad_to")),
    ("sgd", "pad_to", "1025"),
    *(("sgd", key, value) for key, value in (("seed", "-1"), ("seed", str(2**32)), ("dtype", "float16"))),
    *(("sgd", key, value) for key, value in (("normalize", "none"), ("target_loss", "nan"), ("bias", "maybe"))),
]


@pytest.mark.parametrize(("spec", "key", "value"), _OUT_OF_RANGE)
def test_out_of_range(spec, key, value):
    with pytest.raises(UsageError) as caught:
        load_config(flags={key: value}, specs=[spec])
    assert key in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 1e-300), ("damping", 0.0), ("T", 1), ("S", 100), ("ema", 0.0), ("momentum", 0.999)]
)
def test_the_ends_of_a_range_are_inside(key, value):
    assert option(load_config(flags={key: str(value)}, specs=["foof"]), key) == value


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- 1\n- 2", "must be a mapping"),
        ("foof", "must be a mapping"),
        ("3", "must be a mapping"),
        ("1: 2", "must be a mapping"),
        ("run: {seed: 1\n", "cannot be read"),
        ("run:\n\tseed: 1", "cannot be read"),
        ("run: *nothing", "cannot be read"),
        ("a: 1\n---\nb: 2", "cannot be read"),
        ("run: !!python/object:os.system {}", "cannot be read"),
        ("run: !!timestamp x", "cannot be read"),
        ("run: !!map [1]", "cannot be read"),
        ("run: {? [a] : 1}", "cannot be read"),
        ("run: 0x_", "cannot be read"),
        ("run: ._e1", "section 'run' must be a mapping"),
        ("run: {seed: 1}\nrun: {seed: 2}", "'run' is given twice"),
        ("run: {seed: 1, seed: 2}", "'seed' is given twice"),
        ("methods: [{opt: sgd, lr: 1, lr: 2}]", "'lr' is given twice"),
        (b"run: \xff\xfe\xfa", "cannot be read"),
        (b"run: \x00", "cannot be read"),
        ("run: {seed: " + "[" * 5000, "cannot be read"),
        ("run: {seed: 0x" + "f" * 5000 + "}", "seed should be"),
        ("run: {seed: [" + "long, " * 5000 + "]}", "seed should be"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_is_no_configuration(config_file, content, sentence):
    with pytest.raises(UsageError) as caught:
        load_config(config_file(content), specs=["sgd"])
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_config(path, specs=["sgd"])


@pytest.mark.parametrize("content", ["", "# nothing\n", "problem:\nrun:\n", "---\n", "\ufeffrun: {seed: 0}"])
def test_an_empty_file_changes_nothing(config_file, content):
    assert load_config(config_file(content), specs=["sgd"]) == load_config(specs=["sgd"])


def test_yaml_is_utf8_and_merges_are_no_duplicates(config_file):
    text = "train: {q: {b: &b {<<: &a {x: 1}, x: 2}}}\nsweep: {<<: *b, y: ü}\n"
    assert read_yaml(config_file(text))["sweep"] == {"x": 2, "y": "ü"}


# dump.


@pytest.mark.parametrize(
    ("flags", "specs"),
    [
        ({}, ["sgd"]),
        *(({}, [name]) for name in METHODS),
        ({"quick": True}, ["foof"]),
        ({"updates": "5", "lr": "1e-5", "width": "20", "bias": True}, ["foof:T=7,S=3", "kfac:fisher=full", "adamw"]),
        ({"model": "logistic", "dataset": "mnist", "data_dir": "ü b", "seed": "3"}, ["sgd:momentum=0"]),
        ({}, ["torch.optim:Adam:betas=(0.8,0.99)", "torch.optim:AdamW"]),
        ({}, ["sgd:lr=none"]),
        *(({"model": name}, ["foof"]) for name, entry in MODELS.items() if not entry.sequential),
        ({"model": "transformer", "dataset": "shakespeare", "depth": "3", "tied": False}, ["foof", "kfac:T=3", "sgd"]),
        (
            {"model": "transformer", "dataset": "a/ü.txt", "context": "5", "dataset_digest": "0"},
            ["sgd:step=rescale", "natural", "adamw", "foof:step=rescale", "kfac:clip_norm=1", "soap:rest=plain"],
        ),
        ({"model": "transformer", "dataset": "shakespeare"}, ["foof:rest=plain", "kfac:rest=sgd", "ekfac:rest_lr=1"]),
        ({"model": "autoencoder", "likelihood": "bernoulli", "dataset": "curves"}, ["kfac"]),
        ({"model": "resnet18", "norm": "none", "init": "he", "pad_to": "28", "augment": "crop"}, ["sgd"]),
        ({"likelihood": "gaussian", "normalize": "unit"}, ["torch.optim:Adam:clip_norm=1e-3,clip_decay=0.1"]),
        ({"momentum": "0.5", "momentum_after_epoch": "1"}, ["sgd", "foof"]),
        ({"lr_schedule": "linear-warmup-cosine", "warmup_updates": "5"}, ["sgd", "torch.optim:RMSprop", "foof"]),
        ({"lr_schedule": "step", "lr_step_epochs": "20", "lr_decay": "0.5", "clip_norm": "1"}, ["sgd", "foof"]),
    ],
)
def test_dump_is_read_back_as_the_same(config_file, flags, specs):
    config = load_config(flags=flags, specs=specs)
    text = yaml.safe_dump(dump(config))
    again = load_config(config_file(text))
    assert again == config
    assert yaml.safe_dump(dump(again)) == text
    assert dump(again) == dump(config) == yaml.safe_load(text), "lists and tuples make no difference"


@pytest.mark.parametrize(
    ("model", "spec", "rest"),
    [
        ("mlp", "foof", (None, None)),
        ("mlp", "soap", ("adamw", None)),
        ("transformer", "foof", ("adamw", 0.003)),
        ("transformer", "soap", ("adamw", 0.003)),
        ("transformer", "foof:rest=sgd", ("sgd", 0.001)),
        ("transformer", "foof:rest_lr=0.1", ("adamw", 0.1)),
        ("transformer", "foof:rest=plain", ("plain", None)),
        ("transformer", "foof:step=rescale", (None, None)),
        ("transformer", "foof:clip_norm=1", (None, None)),
        ("transformer", "foof-centred", (None, None)),
        ("transformer", "foof-centred:rest=adamw", ("adamw", 0.0058)),
        ("transformer", "kfac:step=rescale,rest=plain", (None, None)),
    ],
)
def test_the_rest_has_the_learning_rate_that_was_set_with_the_method_or_its_optimizers_own_there(model, spec, rest):
    dataset = "shakespeare" if model == "transformer" else "fashion-mnist-1k"
    options = load_config(flags={"model": model, "dataset": dataset}, specs=[spec]).methods[0].options
    assert (options["rest"], options["rest_lr"]) == rest


@pytest.mark.parametrize(
    ("flags", "likelihood", "normalize"),
    [
        ({}, "categorical", "mnist"),
        ({"normalize": "own"}, "categorical", "own"),
        ({"model": "math:sqrt"}, "categorical", "mnist"),
        ({"model": "autoencoder"}, "gaussian", "own"),
        ({"model": "autoencoder", "normalize": "mnist"}, "gaussian", "mnist"),
        ({"model": "autoencoder-sigmoid"}, "bernoulli", "unit"),
        ({"model": "autoencoder-sigmoid", "likelihood": "gaussian"}, "gaussian", "own"),
        ({"model": "math:sqrt", "likelihood": "bernoulli", "dataset": "curves"}, "bernoulli", "unit"),
        ({"dataset": "cifar10"}, "categorical", "published"),
        ({"dataset": "svhn", "model": "autoencoder"}, "gaussian", "own"),
        ({"dataset": "faces", "model": "autoencoder-faces"}, "gaussian", "own"),
        ({"dataset": "faces", "model": "autoencoder-sigmoid"}, "gaussian", "own"),
        ({"dataset": "faces", "model": "autoencoder", "normalize": "published"}, "gaussian", "published"),
        ({"dataset": "curves-original", "model": "autoencoder-sigmoid"}, "bernoulli", "unit"),
    ],
)
def test_likelihood_is_the_models_and_normalisation_follows(flags, likelihood, normalize):
    config = load_config(flags=flags, specs=["sgd"])
    assert (config.problem.likelihood, config.problem.normalize) == (likelihood, normalize)
    assert dump(config)["problem"]["normalize"] == normalize
    assert dump(config)["problem"].get("likelihood", "categorical") == likelihood


_RECORDS = sorted((Path(__file__).parent.parent.parent / "docs" / "records").rglob("config.yaml"))


@pytest.mark.parametrize("path", _RECORDS, ids=lambda path: path.parent.name)
def test_configurations_of_committed_records_are_still_the_same(path):
    """Runs are continued, and found again, by what their config.yaml says: new keys must not change it."""
    was, now = read_yaml(path), dump(load_config(path))
    assert (now["problem"], now["run"]) == (was["problem"], was["run"])
    for old, new in zip(was["methods"], now["methods"], strict=True):
        added = set(new) - set(old)
        assert added <= {"S"}, "the oldest of them leave an S that follows from T unsaid"
        assert {key: new[key] for key in old} == old


# A user's own classes.


def test_defaults_of_a_users_class_come_from_its_constructor(user_module):
    config = load_config(specs=[f"{user_module}:WithTuple:lr=0.5"])
    assert option(config, "betas") == (0.9, 0.99) and option(config, "lr") == 0.5
    with pytest.raises(UsageError, match="betas"):
        load_config(specs=[f"{user_module}:WithTuple:betsa=1"])


def test_a_default_that_is_no_plain_value_is_left_to_the_constructor(user_module):
    config = load_config(specs=[f"{user_module}:WithObject"])
    assert option(config, "chooser") is None and option(config, "nesterov") is True
    assert "more" not in config.methods[0].options
    yaml.safe_dump(dump(config))


@pytest.mark.parametrize("name", ["Adafactor", "Adagrad", "Muon", "NAdam", "RMSprop", "Rprop", "SparseAdam"])
def test_torchs_own_optimizers_by_path(config_file, name):
    """Their defaults are tuples, tuples with None, and flags of torch's; all are kept and come back."""
    config = load_config(specs=[f"torch.optim:{name}"])
    assert load_config(config_file(yaml.safe_dump(dump(config)))) == config


def test_a_constructor_with_kwargs_takes_any_option(user_module):
    config = load_config(flags={"momentum": "0.5"}, specs=[f"{user_module}:Open:foo=3"])
    assert (option(config, "foo"), option(config, "momentum")) == (3, 0.5)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("1 +", "SyntaxError"),
        ("raise ValueError('first line\\nsecond line')", "first line second line"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("x = 3", "has no attribute"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, source, sentence):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(UsageError) as caught:
        load_config(specs=[f"{name}:Thing"])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


# Every error of ours is one line, whoever wrote the text in it.


def test_an_error_is_one_line():
    assert str(KfbenchError("a\n  b\r\nc\u2028d")) == "a b c d"


# Fuzzing: whatever comes in, a Config or a UsageError of one line comes out.

_KEYS = [*Problem.model_fields, *Run.model_fields, *MethodOptions.model_fields, "opt", *COMMAND_BLOCKS]
_SECTIONS = ["problem", "methods", "run"]
_key = st.one_of(st.sampled_from(_KEYS), st.text(max_size=5))
_NASTY = ["1e-3", "nan", "inf", "-1", "0", "1e999", "true", "no", "none", "~", "", "(", "[1,", "{a: b}", "._e1", "0x_"]
_NASTY += ["2020-99-99", "!!timestamp x", "!!int ''", "!!map x", "!!set [a]", "&a [*a]", "'", "9" * 5000, "()", "\0"]
_scalar = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(_NASTY), st.dates()
)
_names = st.sampled_from([*METHODS, *DATASETS, *MODELS])
_tree = st.recursive(
    st.one_of(_scalar, _names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_key, inner, max_size=4)),
    max_leaves=12,
)
_method = st.one_of(_names, st.dictionaries(_key, _scalar, max_size=3).map(lambda d: {**d, "opt": "kfac"}), _tree)
_structure = st.one_of(
    _tree,
    st.fixed_dictionaries(
        {},
        optional={
            "problem": st.one_of(st.dictionaries(_key, st.one_of(_scalar, _names), max_size=3), _tree),
            "run": st.one_of(st.dictionaries(_key, _scalar, max_size=3), _tree),
            "methods": st.one_of(st.lists(_method, max_size=2), _tree),
        },
    ),
)


def check_loads_or_refuses(*arguments):
    config = result_or_one_sentence(lambda: load_config(*arguments))
    if config is not None:
        for method in config.methods:
            lr = method.options["lr"]
            assert lr is None or (math.isfinite(lr) and lr > 0)
        text = yaml.safe_dump(dump(config))
        assert "!!python" not in text


@fuzz
@given(st.binary(max_size=60))
@example(b"run: !!timestamp x")
@example(b"? !!omap\n")
def test_any_bytes_as_a_file(config_file, content):
    check_loads_or_refuses(config_file(content), {}, ["sgd"])


@fuzz
@given(_structure)
def test_any_structure_as_a_file(config_file, structure):
    try:
        text = yaml.safe_dump(structure)
    except yaml.YAMLError:
        return
    check_loads_or_refuses(config_file(text))
    check_loads_or_refuses(config_file(text), {"lr": "0.1", "seed": "3"}, ["foof"], ["run.quick=true"])


_spec = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda name, options: name + ":" + ",".join(f"{key}={value}" for key, value in options),
        st.one_of(st.sampled_from([*METHODS, "torch.optim:Adam"]), st.text(max_size=5)),
        st.lists(st.tuples(_key, st.one_of(st.text(max_size=5), st.sampled_from(_NASTY))), max_size=3),
    ),
)


@fuzz
@given(st.lists(_spec, min_size=1, max_size=2))
@example(["sgd:lr=" + "(" * 200 + ")" * 200])
@example(["sgd:lr={[]: 1}"])
@example(["sgd:lr=\0"])
def test_any_spec(specs):
    check_loads_or_refuses(None, {}, specs)


_path = st.lists(st.one_of(st.sampled_from(_SECTIONS), _key, st.sampled_from(["0", "1", "²"])), max_size=3)
_assignment = st.one_of(
    st.text(max_size=12),
    st.builds(
        lambda path, value: ".".join(path) + "=" + value, _path, st.one_of(st.text(max_size=6), st.sampled_from(_NASTY))
    ),
)


@fuzz
@given(st.lists(_assignment, max_size=3))
@example(["methods.²=1", "methods.².lr=2"])
@example(["a\nb=1", "a\nb.c=1"])
@example(["run.seed=!!timestamp x"])
def test_any_assignment(assignments):
    check_loads_or_refuses(None, {}, ["sgd"], assignments)


@fuzz
@given(st.dictionaries(st.sampled_from(_KEYS), st.one_of(st.text(max_size=6), st.sampled_from(_NASTY)), max_size=3))
def test_any_flag(flags):
    check_loads_or_refuses(None, flags, ["kfac"])
