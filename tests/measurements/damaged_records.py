"""How kfbench reads records that were damaged. A measurement, not a test: its result belongs beside a release.

    python -m tests.measurements.damaged_records [--count 500] [--seed 0]

Makes real folders of train, compare, sweep and wallclock, damages one file at a time at random, and runs the command
that reads it, in this process. A damage is held if the command ends without an internal error and either prints just
what it printed before or says what is wrong: an error, what is left out, a warning. Prints tried and held by kind; exit
code 1 if any was not held. A digit changed to another one leaves a record that nobody can tell from a sound one unless
another file repeats the figure: those that went unnoticed are counted on a line of their own.
"""

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from kfbench.cli.app import main as kfbench
from kfbench.results.records import read_json

TINY = ["--width", "8", "--updates", "10", "--train-samples", "100", "--batch-size", "20", "--eval-samples", "50"]
METHODS = ["--opt", "sgd", "--opt", "foof:warmup_batches=2"]
TIMED = [
    "wallclock",
    "--width",
    "8",
    "--train-samples",
    "100",
    "--batch-size",
    "20",
    "--opt",
    "adam",
    "--window-seconds",
    "0.01",
]
MADE = {
    "train": ["train", *METHODS[2:], "--seeds", "2", *TINY],
    "compare": ["compare", *METHODS, "--seeds", "2", *TINY],
    "sweep": ["sweep", "lr", *METHODS, "--grid", "lr=0.01,0.1", "--extend", "0", "--final-seeds", "2", *TINY],
    "quick": [*TIMED, "--quick"],
    "timed": [*TIMED, "--rounds", "6"],
}
# A quick baseline is always refused; the other is held against itself, so that nothing is timed again.
READ = {
    "train": [["compare", "train"], ["compare", "train", "--html", "--plot", "--out", "out"]],
    "compare": [["compare", "compare"], ["compare", "compare", "train"], [*MADE["compare"], "--out", "compare"]],
    "sweep": [["compare", "sweep"], [*MADE["sweep"], "--out", "sweep"]],
    "quick": [[*TIMED, "--baseline", "quick", "--out", "out"]],
    "timed": [[*TIMED, "--baseline", "timed", "--out", "out", *more] for more in ([], ["--absolute"])],
}
JUNK = [[], [1], 3, -1, 1e300, None, "text", True, {}, "nan", "-inf", 10**400, "x" * 200_000, "\ud800", "[/b]\x1b[31m"]


def run(*words):
    """Exit code, standard output and standard error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["kfbench", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            kfbench()
        except SystemExit as ended:
            return ended.code or 0, out.getvalue(), err.getvalue()
    raise AssertionError("a command ends by SystemExit")


# Kinds of damage: (random numbers, file, others of its name) -> its new content, or None where the kind does not fit.


def truncated(rng, path, _):
    data = path.read_bytes()
    return data[: rng.randrange(len(data))]


def flipped(rng, path, _):
    """Up to eight bytes beside each other, every bit of them turned: no text is left of these."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    for i in range(start, min(start + rng.randint(1, 8), len(data))):
        data[i] ^= 0xFF
    return bytes(data)


def another_digit(rng, path, _):
    data = bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not digits:
        return None
    data[rng.choice(digits)] = rng.choice(b"0123456789")
    return bytes(data)


def zeroed(rng, path, _):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    return bytes(data)


def _places(tree):
    """(container, key) of every value of a JSON tree."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])


def value_replaced(rng, path, _):
    if path.suffix != ".json":
        return None
    tree = json.loads(path.read_text())
    container, key = rng.choice(list(_places(tree)))
    container[key] = rng.choice(JUNK)
    return json.dumps(tree).encode()


def nested(rng, path, _):
    depth = rng.choice([60, 500, 100_000])
    if path.suffix == ".csv":
        return None
    return b'{"schema_version": ' + b"[" * depth + b"]" * depth + b"}" if rng.random() < 0.5 else b"[" * depth


def value_of_yaml(rng, path, _):
    if path.suffix != ".yaml":
        return None
    lines = path.read_text().splitlines()
    place = rng.choice([i for i, line in enumerate(lines) if re.search(r": \S", line)])
    junk = ["null", "[]", "[1]", "{a: 1}", "-1", ".inf", "text", "2020-01-01", "!!binary aGk=", '"\\ud800"', "&a [*a]"]
    lines[place] = lines[place].split(": ")[0] + ": " + rng.choice(junk)
    return ("\n".join(lines) + "\n").encode()


def cell_replaced(rng, path, _):
    if path.suffix != ".csv":
        return None
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(["", "nan", "-inf", "text", "x" * 200_000, "1_0", '"', "[]", "\u0663"])
    return "".join(",".join(row) + "\n" for row in rows).encode()


def column_deleted(rng, path, _):
    if path.suffix != ".csv":
        return None
    rows = [line.split(",") for line in path.read_text().splitlines()]
    column = rng.randrange(len(rows[0]))
    return "".join(",".join(cell for i, cell in enumerate(row) if i != column) + "\n" for row in rows).encode()


def marked(rng, path, _):
    return b"\xef\xbb\xbf" + path.read_bytes()


def encoded(rng, path, _):
    return path.read_text().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "cp037"]))


def shuffled(rng, path, others):
    """The file of that name of another seed, method or trial."""
    return rng.choice(others).read_bytes() if others else None


_WORDS = ("Error: ", "left out: ", "Warning: ")
KINDS = [truncated, flipped, zeroed, value_replaced, nested, value_of_yaml, cell_replaced, column_deleted, marked,
         encoded, shuffled, another_digit]  # fmt: skip


def made():
    """Real folders of every command in the working directory, and a copy of the timing to be held against."""
    for name, words in MADE.items():
        code, _, err = run(*words, "--out", name)
        assert code == 0, err
    for name in MADE:
        shutil.copytree(name, f"whole/{name}")


def timed_before(cells, directory, progress):
    """In place of `wallclock`'s run: the records that were made."""
    shutil.copytree("whole/timed", directory, dirs_exist_ok=True)
    return read_json(directory / "summary.json")


def files_of(folder):
    """What the reading command may look at: no checkpoint, no log."""
    return sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".yaml") and p.stat().st_size)


def outcome(before, after):
    """Why a damage was not held; nothing where it was."""
    code, _, err = after
    if "internal error" in err or code not in (0, 1, 2, 3):
        return f"exit {code}: {err.strip()[-200:]}"
    said = [line for line in err.splitlines() if line.startswith(_WORDS) and line not in before[2]]
    return "" if after == before or said else "a figure changed without a word"


def main(count, seed):
    """Damage, read, count; returns the exit code."""
    rng, tried, held, failures = random.Random(seed), Counter(), Counter(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), ExitStack() as stack:
        place = Path(folder)
        made()
        stack.enter_context(patch("kfbench.wallclock.run.wallclock", timed_before))
        reads = [(name, words) for name, all_words in READ.items() for words in all_words]
        before = {}
        for name, words in reads:
            before[name, *words] = run(*words)
            shutil.rmtree("out", ignore_errors=True)
        while sum(tried.values()) < count:
            name, words = rng.choice(reads)
            kind, path = rng.choice(KINDS), rng.choice(files_of(place / name))
            sound = path.read_bytes()
            others = [p for p in files_of(place / name) if p.name == path.name and p.read_bytes() != sound]
            damage = kind(rng, path, others)
            if damage is None or damage == sound:
                continue
            path.write_bytes(damage)
            problem = outcome(before[name, *words], run(*words))
            shutil.rmtree("out", ignore_errors=True)
            if words[-1] in (name, "out"):  # a command that goes on may have written there
                shutil.rmtree(name)
                shutil.copytree(f"whole/{name}", name)
            path.write_bytes(sound)
            tried[kind.__name__] += 1
            held[kind.__name__] += not problem
            if problem:
                failures.append((kind.__name__, str(path.relative_to(place)), " ".join(words), problem))
    for kind in (kind.__name__ for kind in KINDS):
        print(f"{kind.replace('_', ' '):16} {held[kind]:5} held of {tried[kind]}")
    for failure in failures:
        print("not held:", *failure, sep="  ")
    hidden = [f for f in failures if f[0] == another_digit.__name__ and "figure changed" in f[-1]]
    print(f"held: {sum(held.values())} of {sum(tried.values())}; a digit that no other file repeats: {len(hidden)}")
    return int(len(failures) > len(hidden))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
