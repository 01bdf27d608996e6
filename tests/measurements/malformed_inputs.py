"""Malformed flags, SPECs, YAMLs, data files and classes of the user's, by every command. A measurement, not a test.

    python -m tests.measurements.malformed_inputs [part of a kind or case]

Held is what ends within a minute with exit code 2 and one sentence of a length to read, without a traceback or a
table, and leaves the working folder as it was. Prints tried and held by kind, and each case that did not hold; exits 1
if there is one.
"""

import contextlib
import gzip
import io
import os
import pickle
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np

from kfbench.cli.app import main as kfbench
from kfbench.config.schema import SECTIONS
from kfbench.problems.idx import idx_bytes
from kfbench.problems.locations import FILES
from tests.problems.published_files import write_cifar, write_svhn

SECONDS = 60
SMALL = ["--quick", "--width", "8", "--train-samples", "100", "--batch-size", "20", "--eval-samples", "20"]
# A command -> what makes a small one of it, the method aside.
COMMANDS = {
    "train": ["train", "--opt", "foof"],
    "sweep": ["sweep", "lr", "--opt", "foof", "--dry-run"],
    "compare": ["compare", "--opt", "foof"],
    "wallclock": ["wallclock", "--opt", "foof"],
    "similarity": ["similarity", "--follow", "foof"],
}
BLOCK_OF = {"sweep": "sweep", "compare": "compare", "wallclock": "wallclock", "similarity": "similarity"}
NINES = "9" * 5000

GRIDS = """
banana a,b 1,b null 1,null 2020-01-01,2021-01-01 true,false {a:1} [1,[2]] .nan : :: , 1:2:text -1,1 1,1 2,1 1:30 1:2:3:4
1e-308:1e308:decades 1:1e308:half-decades 1e-308:1:3 text:text:3 nan:1:3 1:inf:3 2:1:decades 1:1:3 1:2:1 0:1:decades
1:10:0-decades 1:10:99-decades 1:2:99999 1e-200,1 1,1e200
"""
GRIDS_OF_FILES = """
banana|[0.1, a]|[null, 1]|null|[2020-01-01, 2021-01-01]|&a [*a]|{a: 1}|[[1, 2]]|[]|[true]|true|'a,b'|[.nan]|[.inf]
[1, 1.0]|2020-01-01|[1:30, 100]
"""
SPECS = """
: :: :lr=1 fofo foof:lr= foof:=1 foof:lr=1,T foof:lr=1,lr=2 foof:lr=(1,2 foof:lr=1) foof:lr=1,,T=1 foof:lrr=1
foof:lr=banana foof:lr=-1 foof:lr=nan foof:lr=1e999 foof:T=0 foof:T=1.5 foof:T=true foof:T=10,S=11 foof:lr=(1,2)
foof:lr={'a':1} foof:order=sometimes kfac:damping_kind=x sgd:nesterov=true,momentum=0 no_such:X odd_things: :X
odd_things:number odd_things:Missing torch.optim:LBFGS torch.optim:SGD:lrr=1 torch:nn os:path ..a:b
"""


def _numeric():
    """(section, key, whole or not) of every number of the schema."""
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            kinds = str(field.annotation) + str(get_args(field.annotation))
            if "Literal" not in kinds and ("int" in kinds or "float" in kinds) and "str" not in kinds:
                yield section, key


def flags():
    """Each numeric flag of each command with what is no such number."""
    for section, key in _numeric():
        values = ["banana", "nan", "inf", "1e999", "0x10", "true", "1,2", "", NINES, "-1", "-" + NINES]
        for value in values:
            if key == "target_loss" and value == "-1":
                continue
            command = next((c for c, block in BLOCK_OF.items() if block == section), "train")
            opt = ["--opt", "kfac"] if section == "method" else COMMANDS[command][1:]
            arguments = [command, *opt, "--quick", f"--{key.replace('_', '-')}", value]
            # Repeated flags are axes there, and refused elsewhere, so the small ones are left out.
            yield f"{command} --{key} {value[:20]}", arguments, None
    for value in (2**32, 10**10, 10**30):
        for key in (
            "threads",
            "seeds",
            "width",
            "seed",
            "batch-size",
            "jobs",
            "refine",
            "processes",
            "rounds",
            "every",
        ):
            commands = {"jobs": "sweep", "refine": "sweep", "every": "similarity", "processes": "wallclock"}
            command = commands.get(key, "wallclock" if key == "rounds" else "train")
            yield f"{command} --{key} {value}", [*COMMANDS[command], "--quick", f"--{key}", str(value)], None
    for key in ("T", "width", "batch-size"):
        yield f"wallclock --{key} nines", ["wallclock", "--opt", "foof", "--quick", f"--{key}", NINES], None
    for command in COMMANDS:
        for folder in ("~nosuchuser/x", "nowhere"):
            arguments = [*COMMANDS[command], *SMALL, "--dataset", "mnist", "--data-dir", folder]
            yield f"{command} --data-dir {folder}", [a for a in arguments if a != "--dry-run"], None


def grids():
    """Each malformed grid as flag and in a file."""
    texts = [
        *GRIDS.split(),
        *("", NINES, f"1,{'9' * 400}", f"1,{NINES}", f"1e-3:1:{'9' * 400}-decades", f"1:2:{NINES}"),
    ]
    for text in texts:
        for name in ("lr", "foof.lr", "damping"):
            arguments = ["sweep", "lr", "damping", "--opt", "foof", "--dry-run", *SMALL, "--grid", f"{name}={text}"]
            yield f"--grid {name}={text[:30]}", arguments, None
    in_files = [text for line in GRIDS_OF_FILES.strip().splitlines() for text in line.split("|")]
    for text in (*in_files, f"[1, {'9' * 400}]", f"[{NINES}]"):
        content = f"sweep: {{grids: {{lr: {text}}}}}"
        yield f"grids: lr: {text[:30]}", ["sweep", "lr", "--opt", "foof", "--dry-run", *SMALL], content
    for text in ("[[lr]]", "[1]", "lr", "{lr: 1}", "[lr, lr]", "[banana]", "[null]", "[&a [*a]]"):
        yield f"parameters: {text}", ["sweep", "--opt", "foof", "--dry-run", *SMALL], f"sweep: {{parameters: {text}}}"


def specs():
    """Each malformed SPEC against the commands that take one."""
    texts = [
        *SPECS.split(),
        *(f"foof:T={NINES}", f"foof:lr={NINES}", f"foof:T=0x{'f' * 5000}", "foof:lr=" + "[" * 500 + "]" * 500),
        *("", "a b:c", "foof\n", "f" * 5000),
    ]
    for text in texts:
        for command in ("train", "sweep", "compare", "wallclock"):
            arguments = [command, *(["lr", "--dry-run"] if command == "sweep" else []), *SMALL, "--opt", text]
            if command == "sweep" and "lr" in text.partition(":")[2]:
                arguments[1] = "damping"
            yield f"{command} --opt {text[:30]!r}", arguments, None


def yamls():
    """Each malformed YAML against every command, and each number of the schema with what is none."""
    bomb = "lr: [&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
        f"&{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    merged = "".join(
        f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "alias bomb": f"methods: [{{opt: foof, {bomb}]}}]",
        "merge bomb": f"a: &a {{x: 1}}\n{merged}",
        "holds itself": "methods: [{opt: foof, lr: &a [*a]}]",
        "undefined alias": "methods: *a",
        "deep": "[" * 20000,
        "text": "foof",
        "list": "[foof]",
        "number": "3",
        "no utf-8": b"\xff\xfe\x00",
        "null byte": b"run: \x00",
        "tab": "run:\n\tseed: 1",
        "twice": "run: {}\nrun: {}",
        "unknown key": "rnu: {}",
        "number as key": "1: 2",
        "tag": "run: !!python/object/apply:os.system ['true']",
        "timestamp": "run: !!timestamp x",
        "methods is text": "methods: foof",
        "methods is a mapping": "methods: {opt: foof}",
        "methods is a number": "methods: 3",
        "methods of numbers": "methods: [3]",
        "methods of null": "methods: [null]",
        "method without opt": "methods: [{lr: 1}]",
        "opt is a list": "methods: [{opt: [foof]}]",
        "option is a number": "methods: [{opt: foof, 1: 2}]",
        "problem is a list": "problem: [1]",
        "run is text": "run: fast",
        "null character": 'problem: {data_dir: "a\\0b", dataset: curves, model: autoencoder}',
        "large": b"#" * 5_000_000,
    }
    for name, text in texts.items():
        for command in COMMANDS:
            arguments = [command, *(["lr", "--dry-run"] if command == "sweep" else []), *SMALL]
            yield f"{command} {name}", arguments, text
    for section, key in _numeric():
        for value in ("true", "[1]", "{a: 1}", "banana", "2020-01-01", "9" * 400, "0x" + "f" * 5000, "!!binary aGk="):
            command = next((c for c, block in BLOCK_OF.items() if block == section), "train")
            arguments = [*COMMANDS[command], "--quick"]
            content = f"{section}: {{{key}: {value}}}"
            if section == "method":
                arguments, content = ["train", "--quick"], f"methods: [{{opt: kfac, {key}: {value}}}]"
            yield f"{command} {section}.{key}: {value[:20]}", arguments, content
    for command in ("compare", "train"):
        yield f"{command} of nothing", [command, *SMALL], "# nothing"


def configs():
    """What is no file of a plausible size, as --config and as what to compare."""
    for path in ("/dev/zero", "/dev/null", "/dev/urandom", "folder", "missing", "pipe", "sparse", "loop", "x" * 300):
        for command in COMMANDS:
            arguments = [command, *(["lr", "--dry-run"] if command == "sweep" else []), *SMALL, "--config", path]
            yield f"{command} --config {path[:20]}", arguments, None
        yield f"compare {path[:20]}", ["compare", path, *SMALL], None


def data():
    """Data files that lie about their size, or are none; read by training and by the check."""
    images, labels = np.zeros((200, 28, 28)), np.zeros(200)
    whole = {FILES[0]: images, FILES[1]: labels, FILES[2]: images[:30], FILES[3]: labels[:30]}
    header = struct.pack(">HBB3I", 0, 8, 3, 200, 28, 28)
    promises = struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28)
    faults = {
        "gzip bomb": gzip.compress(header + bytes(300_000_000), 1),
        "gzip bomb behind a large promise": gzip.compress(promises + bytes(10**7)),
        "gzip of zeros": gzip.compress(bytes(300_000_000), 1),
        "promises 1.7 TB": promises + bytes(100),
        "promises 1 GiB": struct.pack(">HBB3I", 0, 8, 3, 2**30 // 784, 28, 28) + bytes(100),
        "one byte less": header + bytes(200 * 784 - 1),
        "one byte more": header + bytes(200 * 784 + 1),
        "no images of absurd size": struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1),
        "empty": b"",
        "text": b"<html>",
        "other kind": b"\0\0\x0d\3" + header[4:] + bytes(100),
        "torn gzip": gzip.compress(header + bytes(10**5))[:60],
        "wrong checksum": gzip.compress(header + bytes(200 * 784))[:-8] + b"\0" * 8,
        "labels": idx_bytes(labels.astype("uint8")),
    }
    for name, content in faults.items():
        for arguments in (["train", "--opt", "sgd", *SMALL, "--dataset", "mnist"], ["data", "check", "mnist"]):
            yield f"{arguments[0]} {name}", [*arguments, "--data-dir", "d"], (whole, content)
    yield from _published()
    for folder in ("file", "foreign"):  # of what would be generated
        arguments = ["train", "--opt", "sgd", *SMALL, "--model", "autoencoder", "--dataset", "curves"]
        yield f"curves is {folder}", [*arguments, "--data-dir", folder], None
        yield f"fetch where curves is {folder}", ["data", "fetch", "curves", "--data-dir", folder], None


def _published():
    """CIFAR's pickles and SVHN's MATLAB files, one of which is not what it should be."""
    executes = pickle.dumps(_Executes(), 2)
    faults = {
        "empty": b"",
        "text": b"<html>",
        "pickle that executes": executes,
        "pickle that executes, protocol 4": pickle.dumps(_Executes(), 4),
        "pickle of a number": pickle.dumps(3, 2),
        "pickle of other keys": pickle.dumps({"data": [1], "labels": [0]}, 2),
        "pickle cut": pickle.dumps({b"data": bytes(3072), b"labels": [0]}, 2)[:-20],
        "deep pickle": b"\x80\x02" + b"]" * 100_000 + b".",
        "long text": b"\x80\x02X" + (2**31 - 1).to_bytes(4, "little"),
        "gzip bomb": gzip.compress(bytes(300_000_000), 1),
        "matlab header alone": b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM",
        "torn matlab": b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM" + b"\x0f\0\0\0\xff\xff\xff\x7f",
    }
    places = {"cifar10": "cifar-10-batches-py/data_batch_1", "svhn": "svhn/train_32x32.mat"}
    for dataset, place in places.items():
        for name, content in faults.items():
            arguments = ["--model", "convnet", "--opt", "sgd", "--quick", "--width", "4", "--batch-size", "4"]
            files = (dataset, place, content)
            yield f"train {dataset} {name}", ["train", *arguments, "--dataset", dataset, "--data-dir", "d"], files
            yield f"check {dataset} {name}", ["data", "check", dataset, "--data-dir", "d"], files


class _Executes:
    """Leaves a file in the working folder when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("EXECUTED"),)


def own():
    """Classes and functions of the user's, each wrong in its own way."""
    from tests.measurements import odd_things

    for name in vars(odd_things):
        if name.startswith("_") or name in ("torch", "nn"):
            continue
        option = "--model" if name[0].islower() else "--opt"
        for command in ("train", "compare"):
            opt = ["--opt", "sgd"] if option == "--model" else []
            small = [a for a in SMALL if a not in ("--width", "8")] if option == "--model" else SMALL
            yield f"{command} {option} {name}", [command, *small, *opt, option, f"odd_things:{name}"], None
    for damping in ("0", "-1"):
        for opt in ("foof-kfac-damping", "natural", "gn-cg"):
            yield f"{opt} --damping {damping}", ["train", "--opt", opt, *SMALL, "--damping", damping], None


KINDS = {
    "numbers in flags": flags,
    "grids": grids,
    "SPECs": specs,
    "YAML": yamls,
    "files as configuration": configs,
    "data files": data,
    "own classes": own,
}


def _place(folder, content):
    """The working folder of one case."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with (folder / "sparse").open("wb") as file:
        file.truncate(10**11)
    (folder / "loop").symlink_to("loop")
    (folder / "file").mkdir()
    (folder / "file" / "curves").write_text("no folder")
    (folder / "foreign" / "curves").mkdir(parents=True)
    (folder / "foreign" / "curves" / "thesis.tex").write_text("years of work")
    shutil.copy(Path(__file__).with_name("odd_things.py"), folder)
    if isinstance(content, (str, bytes)):
        (folder / "c.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None and len(content) == 3:
        dataset, place, faulty = content
        write_cifar(folder / "d") if dataset == "cifar10" else write_svhn(folder / "d")
        (found,) = (folder / "d").rglob(Path(place).name)
        found.write_bytes(faulty)
    elif content is not None:
        (folder / "d").mkdir()
        whole, faulty = content
        for name, array in whole.items():
            (folder / "d" / name).write_bytes(idx_bytes(array.astype("uint8")))
        (folder / "d" / FILES[0]).write_bytes(faulty)


def _tree(folder):
    return sorted((str(p.relative_to(folder)), p.lstat().st_size if not p.is_dir() else 0) for p in folder.rglob("*"))


def _fault(arguments, content):
    """What did not hold, in a few words; nothing where all did."""
    if isinstance(content, (str, bytes)):
        arguments = [*arguments, "--config", "c.yaml"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _place(folder, content)
        os.chdir(folder)
        before, began = _tree(folder), time.monotonic()
        out, err, code = io.StringIO(), io.StringIO(), None
        sys.argv = ["kfbench", *arguments]
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                kfbench()
        except SystemExit as error:
            code = error.code
        except TimeoutError:
            return f"took longer than {SECONDS} s"
        finally:
            signal.alarm(0)
            os.chdir("/")
        said, seconds = err.getvalue(), time.monotonic() - began
        faults = {
            f"exit code {code}": code != 2,
            "no single sentence": not said.startswith("Error: ") or len(said.splitlines()) != 1,
            "a sentence nobody reads": len(said) > 3100,
            "a traceback": "Traceback" in said or "internal error" in said,
            "something on standard output": out.getvalue() != "",
            "something was left behind": _tree(folder) != before,
            f"{seconds:.0f} s": seconds > SECONDS / 2,
        }
    found = [fault for fault, is_so in faults.items() if is_so]
    return f"{', '.join(found)}: {said.strip()[-300:]}" if found else ""


def _late(*_):
    raise TimeoutError


def main(part=""):
    """Print a row for each kind; the number of cases that did not hold."""
    # Neither data sets nor caches of this machine.
    os.environ.update({"XDG_CACHE_HOME": "/nonexistent", "COLUMNS": "200"})
    os.environ.pop("KFBENCH_DATA", None)
    signal.signal(signal.SIGALRM, _late)
    warnings.simplefilter("default")
    sys.dont_write_bytecode = True
    tried, held = Counter(), Counter()
    for kind, cases in KINDS.items():
        for name, arguments, content in cases():
            if part not in f"{kind} {name}":
                continue
            tried[kind] += 1
            fault = _fault(arguments, content)
            held[kind] += not fault
            if fault:
                print(f"{kind}: {name}: {fault}", flush=True)
        print(f"{kind:25} tried {tried[kind]:5}  held {held[kind]:5}", flush=True)
    print(f"{'all':25} tried {sum(tried.values()):5}  held {sum(held.values()):5}")
    return sum(tried.values()) - sum(held.values())


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:2]) else 0)
