"""Verdicts read back: one that cannot be read or believed is named and hides no other; a refusal leaves nothing."""

import json
from pathlib import Path

import pytest

from kfbench.claims.evidence import Figures
from kfbench.claims.file import RULES, read_claim
from kfbench.claims.shelf import claim_folder, read_verdict
from kfbench.claims.verdicts import judge, verdict
from kfbench.results.reading import DamagedError
from tests.cli.test_claims import CLAIM, write


def sound(path, **changes):
    """A verdict of this claim as it would be kept, with what a test changes of it."""
    file = read_claim(path, "small")
    figures = Figures([1.0, 1.1, 1.0, 1.1, 1.0], [2.0, 2.1, 2.0, 2.1, 2.0])
    parts = [judge(part.model_dump(), figures) for part in file.claim.parts]
    head = file.claim.model_dump(include={"id", "source", "says"})
    told = {"hash": file.hash, "rules": RULES, "trend": True, "verdict": verdict(parts, trend=True), "parts": parts}
    record = {**head, "scale": "small", **told, **changes}
    kept = Path("docs/results/small") / file.claim.id / "verdict.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(record))
    return kept


DAMAGE = {
    "a list": lambda kept, record: "[]",
    "a number": lambda kept, record: "3",
    "null": lambda kept, record: "null",
    "cut": lambda kept, record: json.dumps(record)[:-40],
    "deep": lambda kept, record: "[" * 100_000,
    **{f"no {key}": lambda kept, record, key=key: json.dumps({k: v for k, v in record.items() if k != key})
       for key in ("source", "verdict", "says", "parts", "id", "hash", "scale")},
    **{f"{key} a list": lambda kept, record, key=key: json.dumps(record | {key: [1]})
       for key in ("source", "verdict", "says", "parts", "methods", "notes", "wallclock", "similarity")},
    "another claim's": lambda kept, record: json.dumps(record | {"id": "hard"}),
    "another scale's": lambda kept, record: json.dumps(record | {"scale": "full"}),
    "another version": lambda kept, record: json.dumps(record | {"schema_version": 2}),
    "another verdict": lambda kept, record: json.dumps(record | {"verdict": "not reproduced"}),
    "no such verdict": lambda kept, record: json.dumps(record | {"verdict": "maybe"}),
    "a part without threshold": lambda kept, record: json.dumps(
        record | {"parts": [{k: v for k, v in record["parts"][0].items() if k != "below"}]}),
    "a part of another outcome": lambda kept, record: json.dumps(
        record | {"verdict": "not reproduced", "parts": [record["parts"][0] | {"outcome": "not reproduced"}]}),
    "a ratio of text": lambda kept, record: json.dumps(record | {"parts": [record["parts"][0] | {"ratio": "low"}]}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_verdict_is_named_and_hides_no_other(kfbench, damage):
    easy = write()
    other = write(CLAIM.replace("id: easy", "id: other"), name="other")
    sound(other)
    kept = sound(easy)
    code, out, err = kfbench("compare", "configs", "--format", "csv")
    assert code == 0 and out.count(",small,trend (as claimed),") == 2, err
    kept.write_text(damage(kept, json.loads(kept.read_text())))
    code, out, err = kfbench("compare", "configs", "--format", "csv")
    assert code == 3 and "internal error" not in err
    assert out.count(",small,trend (as claimed),") == 1 and "easy,nowhere," in out and ",small,cannot be read," in out
    (warning,) = [line for line in err.splitlines() if line.startswith("Warning: ")]
    assert "docs/results/small/easy/verdict.json" in warning
    # Alone, it says what to do.
    code, out, err = kfbench("compare", easy)
    assert (code, out) == (2, "") and "easy/verdict.json" in err and "remove it, then the claim is judged again" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"trial,method\n0,foof\n", "trial\n".encode("utf-16")])
def test_committed_trials_that_cannot_be_read_are_named_before_anything_is_trained(kfbench, content):
    kept = sound(write(), hash="of before")
    kept.with_name("trials.csv").write_bytes(content)
    code, out, err = kfbench("compare", "configs", "--format", "csv")
    assert code == 0 and "stale" in out, "the table does not need them"
    code, out, err = kfbench("compare", "configs/easy.yaml", "--scale", "small")
    assert (code, out) == (2, "") and "docs/results/small/easy/trials.csv" in err
    assert not Path("runs").exists()


def test_a_folder_that_nothing_came_of_is_removed_with_what_was_made_for_it(tmp_path):
    with pytest.raises(ZeroDivisionError), claim_folder(tmp_path / "runs" / "compare-easy"):
        raise ZeroDivisionError
    assert not (tmp_path / "runs").exists()
    with claim_folder(tmp_path / "runs" / "compare-easy"):
        (tmp_path / "runs" / "compare-easy" / "verdict.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"verdict\.json"):
        read_verdict(tmp_path / "runs" / "compare-easy")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"measure": "toy_loss", "of": "'foof, point 3'", "to": "'sgd, point 2'"}, "'foof, point 3'"),
        ({"measure": "toy_loss", "of": "'kfac, point 1'", "to": "'sgd, point 2'"}, "'kfac'"),
        ({"measure": "least_damping"}, "least_damping of 'sgd', whose damping is not swept"),
        ({"text": CLAIM.replace("extend: 0", "extend: 0\n  top: 0")}, "needs fresh seeds, so sweep.top of 1 or more"),
        ({"more": "ask: [null]"}, "ask"),
        ({"more": "ask: [3]"}, "ask"),
        ({"more": "published: [null]"}, "published"),
        ({"more": "published: ['foof:lr=0.1,damping=-1']"}, "damping should be"),
        ({"measure": "cosine_distance", "of": "foof", "to": "sgd", "more": "ask: [sgd]"}, "is of two methods"),
        ({"measure": "progress", "of": "foof ~ sgd", "to": "sgd", "more": "ask: [sgd]"}, "progress is of one method"),
        (
            {
                "text": CLAIM.replace("progress: true", "spectrum: ['1']").replace("[foof, sgd]", "[kfac, sgd]")
                .replace("follow: foof", "follow: kfac"),
                "measure": "frobenius_error", "of": "kfac", "to": "sgd", "more": "ask: [sgd]",
            },
            "unknown method with an approximation of the Fisher",
        ),
        (
            {
                "text": CLAIM.replace("every: 3", "every: 3, metric: foof, against: adam"),
                "measure": "cosine_distance", "of": "foof ~ sgd", "to": "foof ~ adam", "more": "ask: [sgd, adam]",
            },
            "'foof ~ sgd' is no pair of similarity.against 'adam'",
        ),
    ],
)  # fmt: skip
def test_what_would_show_after_hours_is_said_first_and_leaves_nothing(kfbench, changes, part):
    code, out, err = kfbench("compare", write(**changes), "--scale", "full")
    assert (code, out) == (2, "") and part in err, err
    assert len(err.splitlines()) == 1 and not Path("runs").exists()


def test_a_folder_beside_a_claim_is_not_ignored(kfbench):
    path = write()
    Path("empty").mkdir()
    for what in ([path, "."], [path, "empty"], [path, "configs"], ["configs", "empty"]):
        code, out, err = kfbench("compare", *what, "--scale", "smoke")
        assert (code, out) == (2, "") and "not several kinds" in err, what
    assert not Path("runs").exists()
