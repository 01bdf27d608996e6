"""`kfbench report`: what is damaged is named and hides nothing; what is somebody else's stays; else one sentence."""

import json
from pathlib import Path

import pytest

from tests.report.committed import trial, write_claim
from tests.results.run_folders import tree

RESULTS = Path("results")


@pytest.fixture(autouse=True)
def results():
    write_claim(RESULTS, "one", trials=[trial(0)])
    write_claim(RESULTS, "two")


def test_a_site_is_written_and_written_again(kfbench):
    code, out, err = kfbench("report", RESULTS, "--out", "site")
    assert (code, out, err) == (0, "", "site: site/index.html\n")
    before = tree("site")
    assert kfbench("report", RESULTS, "--out", "site")[0] == 0 and tree("site") == before
    for path in (RESULTS / "full" / "one").iterdir():
        path.unlink()
    Path("site/data/ratios.csv.tmp").write_text("killed")
    assert kfbench("report", RESULTS, "--out", "site")[0] == 0
    assert {path.parent.name for path in Path("site").rglob("verdict.json")} == {"two"}, "what is gone has gone"
    assert not Path("site/data/full/one").exists() and not list(Path("site").rglob("*.tmp"))


DAMAGE = {
    "cut": lambda text: text[:-40],
    "of another claim": lambda text: text.replace('"one"', '"three"'),
    "of another scale": lambda text: text.replace('"full"', '"small"'),
    "of another verdict": lambda text: text.replace('"verdict": "reproduced"', '"verdict": "not reproduced"'),
    "a list": lambda text: "[]",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_verdict_is_named_and_hides_no_other(kfbench, damage):
    path = RESULTS / "full" / "one" / "verdict.json"
    path.write_text(damage(path.read_text()))
    code, out, err = kfbench("report", RESULTS.resolve(), "--out", "site")
    assert (code, out) == (3, "") and err.count("Warning: full/one/verdict.json ") == 1
    text = Path("site/index.html").read_text()
    assert 'id="two-full"' in text and 'id="one-full"' not in text and "<li>full/one/verdict.json " in text
    assert str(Path.cwd()) not in text
    # A table without it would look whole.
    Path("page.md").write_text("<!-- kfbench report: verdicts -->\n<!-- end -->\n")
    code, _, err = kfbench("report", RESULTS, "--quote", "page.md")
    assert code == 2 and "nothing is quoted while a verdict cannot be read" in err
    assert "two" not in Path("page.md").read_text()


@pytest.mark.parametrize("name", ["trials.csv", "environment.json"])
def test_what_lies_damaged_beside_a_verdict_does_not_hide_it(kfbench, name):
    (RESULTS / "full" / "one" / name).write_bytes(b"\xff\xfe")
    code, _, err = kfbench("report", RESULTS, "--out", "site")
    assert code == 3 and f"Warning: full/one/{name} " in err
    assert 'id="one-full"' in Path("site/index.html").read_text()


def test_a_claim_whose_trials_failed_is_told_by_the_exit_code(kfbench):
    write_claim(RESULTS, "three", status="failed")
    assert kfbench("report", RESULTS, "--out", "site")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere", "--out", "site"], "nowhere is no folder"),
        (["results/full/one/verdict.json", "--out", "site"], "is no folder"),
        (["results/full", "--out", "site"], "holds no verdicts (SCALE/ID/verdict.json)"),
        (["results"], "give --out DIR for a site, --quote FILE for a document"),
        (["results", "--check", "--out", "site"], "give it with --quote FILE"),
        (["results", "--check", "--out", "site", "--quote", "page.md"], "without --out"),
        (["results", "--out", "results"], "lie in each other"),
        (["results", "--out", "results/site"], "lie in each other"),
        (["results", "--out", "."], "lie in each other"),
        (["results", "--out", "file"], "--out file is a file"),
        (["results", "--out", "others"], "others holds something else than a site of report, notes.txt"),
        (["results", "--out", "page"], "page holds something else than a site of report, index.html"),
        (["results", "--out", "linked"], "linked holds something else than a site of report, data"),
        (["results", "--quote", "missing.md"], "missing.md cannot be read"),
        (["results", "--quote", "file"], "file has no marker"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_sentence_and_leaves_everything(kfbench, arguments, part):
    Path("file").write_text("text")
    for name, file in (("others", "notes.txt"), ("page", "index.html")):
        Path(name).mkdir()
        Path(name, file).write_text("somebody's")
    Path("linked").mkdir()
    Path("linked/data").symlink_to(Path("others").resolve())
    before = tree()
    code, out, err = kfbench("report", *arguments)
    assert (code, out) == (2, "") and part in err, err
    assert len(err.splitlines()) == 1 and tree() == before


def test_a_verdict_that_is_none_is_shown(kfbench):
    write_claim(RESULTS, "three", scale="smoke", verdict=None)
    assert kfbench("report", RESULTS, "--out", "site")[0] == 0
    assert '<span class="badge other">no verdict</span>' in Path("site/index.html").read_text()
    assert json.loads(Path("site/data/smoke/three/verdict.json").read_text())["verdict"] is None
