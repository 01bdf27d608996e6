"""The site: every claim with all that one must know to quote it, nothing fetched, nothing markup; drawn as it is."""

import csv
import html
import json
import math
import re
from pathlib import Path

import pytest

from kfbench.report.judged import badge, gather
from kfbench.report.run import write_site
from kfbench.report.site import page
from tests.browser import browse, needs_browser
from tests.report.committed import part, trial, tuned, write_claim

NASTY = "</script><b>\"'&{{data}}\\1"
TRIALS = [
    *(trial(i, loss=0.1 * (i + 1), seconds=i + 1.0, lr=10.0**-i) for i in range(4)),
    trial(4, loss=math.inf),
    trial(5, "foof-T=10", loss=0.3, round="final"),
    trial(6, "foof-T=10", loss=0.2, seconds=None),
]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    parts = [part(), part(above=0.8, decides=False), part(to=(math.inf,) * 5), part(of=(), to=())]
    methods = {"foof": tuned(best_edges=["lower lr"]), "foof-T=10": tuned(opt="foof")}
    write_claim(folder, "one", trials=TRIALS, parts=parts, methods=methods, notes="a note")
    write_claim(folder, "two", source="Another paper, Theorem 2", parts=[part(above=0.8)], says=NASTY)
    write_claim(folder, "one", scale="small")
    return folder


def cards(text):
    return dict(re.findall(r'<article class="card" id="([^"]*)"(.*?)</article>', text, re.S))


def test_a_card_holds_what_one_must_know_to_quote_it(results):
    found = cards(page(gather(results)))
    assert list(found) == ["one-small", "one-full", "two-full"]
    card = found["one-full"]
    for said in ("A paper (Somebody 2022), Figure 1", "one holds", "0.509", "&lt; 1", "a note", "no interval", "abacus",
                 "best at the lower lr edge", "<td class=name>lower lr</td>", "(not reproduced, beside the claim)",
                 "commit 0123456789 on", "1 thread",
                 "kfbench compare configs/one.yaml --scale full", 'href="data/full/one/trials.csv"'):  # fmt: skip
        assert said in card, said
    assert '<span class="badge inconclusive">inconclusive</span>' in card.partition("</h3>")[0]
    assert '<span class="badge trend for">trend (as claimed)</span>' in found["one-small"]
    assert "commit" in found["two-full"] and "<details><summary>Tuned" not in found["two-full"]


def test_filters_know_paper_verdict_and_scale(results):
    text = page(gather(results))
    assert 'data-paper="Another paper" data-verdict="not reproduced" data-scale="full"' in cards(text)["two-full"]
    choices = {
        name: re.findall(r"<option>(.*?)</option>", options)
        for name, options in re.findall(r'data-filter="(\w+)"><option value="">all</option>(.*?)</select>', text)
    }
    assert choices == {
        "paper": ["A paper", "Another paper"],
        "verdict": ["trend (as claimed)", "inconclusive", "not reproduced"],
        "scale": ["small", "full"],
    }


@pytest.mark.parametrize(
    ("words", "classes"),
    [("reproduced", "reproduced"), ("not reproduced", "not"), ("inconclusive", "inconclusive"),
     ("withheld (edge: kfac, lower damping)", "withheld"), ("trend (as claimed)", "trend for"),
     ("trend: as claimed", "trend for"), ("trend (against)", "trend against"),
     ("trend: not as claimed", "trend against"),
     ("trend (open)", "trend"), ("stale (reproduced)", "other"), ("perhaps", "other"), ("", "other")],
)  # fmt: skip
def test_a_badge_goes_by_the_first_word(words, classes):
    assert badge(words) == classes


def test_what_was_judged_by_earlier_rules_is_stale(results):
    write_claim(results, "old", rules=1)
    text = page(gather(results))
    # Of the claim, and of its ratio.
    assert cards(text)["old-full"].count('<span class="badge other">stale (reproduced)</span>') == 2
    assert '"badge":"other"' in text.partition('"key":"old-full"')[2]


def test_nothing_is_fetched_and_nothing_is_markup(results):
    text = page(gather(results))
    links = set(re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)([^"']*)""", text))
    assert {link for link in links if not link.startswith(("data/", "#"))} == set() and "@import" not in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"], "the name of a namespace alone"
    assert text.count("</script>") == 2 and "<b>" not in text and html.escape(NASTY) in text
    assert "default-src 'none'" in text and not re.search(r"\{\{(generator|cards|style)\}\}", text)


def test_every_link_leads_to_a_copy_of_the_record(results, tmp_path):
    index = write_site(gather(results), tmp_path / "site")
    linked = set(re.findall(r'href="(data/[^"]+)"', index.read_text()))
    assert "data/full/one/trials.csv" in linked and "data/ratios.csv" in linked
    for link in linked - {"data/ratios.csv"}:
        assert (index.parent / link).read_bytes() == (results / link.removeprefix("data/")).read_bytes()
    rows = list(csv.DictReader((index.parent / "data/ratios.csv").open()))
    record = json.loads((results / "full/one/verdict.json").read_text())
    own = [row for row in rows if (row["claim"], row["scale"]) == ("one", "full")]
    assert [float(row["ratio"]) for row in own][:2] == [float(p["ratio"]) for p in record["parts"]][:2]
    assert len(rows) == 6 and {path.name for path in index.parent.iterdir()} == {"index.html", "data"}


def test_keys_that_are_null_or_missing_hide_nothing(results):
    place = write_claim(results, "bare", wallclock=None, similarity=None)
    record = json.loads((place / "verdict.json").read_text())
    del record["parts"][0]["edges_of"], record["trend"]
    record["parts"][0] |= {"above": None}
    (place / "verdict.json").write_text(json.dumps(record))
    (place / "environment.json").unlink()
    assert "Commit not noted; on a machine that is not noted" in cards(page(gather(results)))["bare-full"]


def attribute(document, id, name):
    return re.search(rf'id="{id}"[^>]*data-{name}="([^"]*)"', document)[1]


@needs_browser
def test_a_browser_draws_every_trial_and_ratio_and_complains_of_nothing(results, tmp_path):
    index = write_site(gather(results), tmp_path / "site")
    rows = list(csv.DictReader((results / "full/one/trials.csv").open()))
    finite = [row for row in rows if row["seconds_updates"] and math.isfinite(float(row["final_train_loss"]))]
    document, log = browse(index, "?trials=one-full")
    assert "CONSOLE" not in log, log
    trials = re.findall(r'class="trial[^"]*" d="[^"]*" transform', document)
    assert int(attribute(document, "trials", "points")) == len(trials) == len(finite) == 5
    assert "foof: 4 drawn, 1 diverged<" in document and "foof-T=10: 1 drawn, 1 without loss or seconds<" in document
    ratios = list(csv.DictReader((index.parent / "data/ratios.csv").open()))
    assert int(attribute(document, "ratios", "points")) == len(ratios) == 6
    assert "3 of 3 shown" in document and "no ratio</text>" in document


@needs_browser
def test_filters_hide_claims_and_their_ratios(results, tmp_path):
    index = write_site(gather(results), tmp_path / "site")
    document, log = browse(index, "?scale=full&verdict=not%20reproduced")
    assert "CONSOLE" not in log and "1 of 3 shown" in document
    assert int(attribute(document, "ratios", "points")) == 1
    shown = re.findall(r'<article class="card" id="([^"]*)"([^>]*)>', document)
    assert [key for key, attributes in shown if "hidden" not in attributes] == ["two-full"]


_KEYS = """
<script>
  const pressed = key => new KeyboardEvent("keydown", { key, bubbles: true });
  const press = (id, key) => document.getElementById(id).dispatchEvent(pressed(key));
  const told = id => document.getElementById(id).innerText.replace(/\\s+/g, " ");
  press("trials", "ArrowRight");
  press("ratios", "ArrowDown");
  press("ratios", "ArrowDown");
  press("ratios", "Enter");
  console.error("seen", told("trial-tip"), "|", told("ratio-tip"), "|", location.hash,
    document.documentElement.scrollWidth - document.documentElement.clientWidth);
</script>
"""


@needs_browser
def test_the_keyboard_walks_along_both_plots_and_a_narrow_window_is_wide_enough(results, tmp_path):
    index = write_site(gather(results), tmp_path / "site")
    index.write_text(index.read_text() + _KEYS)
    _, log = browse(index, "?trials=one-full", window="400,844")
    (said,) = re.findall(r'CONSOLE.*?"(seen .*)", source', log)
    trial_tip, ratio_tip, rest = said.split(" | ")
    assert trial_tip == "seen foof lr 1 seed 0, tuning loss 0.1, 1 s"
    assert ratio_tip.startswith("one-full: final train loss foof / sgd 0.509 (")
    assert rest == "#one-full 0", "the last: wider than the window"


def test_the_site_of_the_committed_verdicts_can_be_written(tmp_path):
    folder = Path(__file__).parent.parent.parent / "docs" / "results"
    found = gather(folder)
    assert not found.damaged and len(found.claims) == len(list(folder.glob("*/*/verdict.json")))
    index = write_site(found, tmp_path / "site")
    assert index.stat().st_size < 600_000
