"""The page: it needs no network, escapes everything, and draws what epochs.csv holds, as a browser tells."""

import csv
import html
import math
import re

import pytest

from kfbench.compare.comparison import summarise
from kfbench.compare.gathering import gather
from kfbench.compare.page import page, write_page
from tests.browser import browse, needs_browser
from tests.compare.comparable_runs import write_method

_NASTY = "sgd-</script><b>\"'&{{data}}"


@pytest.fixture
def runs(tmp_path):
    write_method(tmp_path / "a", "sgd", [(2.0, 1.5, 1.0), (2.0, 1.6, 1.2)], label=_NASTY)
    write_method(tmp_path / "b", "adam", [(2.0, 1.1, 0.0), (2.0, 0.9, 1e30)])
    write_method(tmp_path / "c", "foof", [(2.0, 0.1, 0.01), (2.0, math.inf)])
    return tmp_path


def written(runs):
    comparison = gather([runs / name for name in "abc"])
    write_page(comparison, summarise(comparison), runs / "compare.html")
    return runs / "compare.html"


def losses(runs, method):
    """What epochs.csv holds of one method and a logarithmic axis can show."""
    tables = [csv.DictReader(path.open()) for path in (runs / method).glob("seed-*/epochs.csv")]
    found = [float(row["train_loss"]) for table in tables for row in table]
    return [loss for loss in found if math.isfinite(loss) and loss > 0]


def test_nothing_is_fetched_and_nothing_is_markup(runs):
    text = written(runs).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", text) and "@import" not in text
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"], "the name of a namespace alone"
    assert text.count("</script>") == 2 and "<b>" not in text and html.escape(_NASTY) in text
    assert "default-src 'none'" in text and not re.search(r"\{\{(title|table|common)\}\}", text)


def test_what_a_reader_needs_is_there_without_javascript(runs):
    text = written(runs).read_text()
    for part in ("fashion-mnist-1k, mlp of width 8", "final loss / ", "weight_decay", "abacus", "diverged with 1 of 2"):
        assert part in text, part


def test_one_method_has_no_differences(tmp_path):
    comparison = gather([write_method(tmp_path / "a")])
    assert "There is one method only" in page(comparison, summarise(comparison))


def attribute(document, name):
    return re.search(rf'id="plot"[^>]*data-{name}="([^"]*)"', document)[1]


@needs_browser
def test_a_browser_draws_every_loss_and_complains_of_nothing(runs):
    wanted = sum(len(losses(runs, method)) for method in "abc")
    document, log = browse(written(runs), "#seconds")
    assert "CONSOLE" not in log, log
    assert int(attribute(document, "points")) == wanted == document.count('class="point"') == 15
    assert attribute(document, "axis") == "seconds" and "seconds in updates</text>" in document
    assert document.count('class="mean" points=') == 3 and f"{html.escape(_NASTY, quote=False)}</button>" in document


_CLICKS = """
<script>
  const legend = document.querySelectorAll("#legend button"), plot = document.getElementById("plot");
  const press = key => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const first = legend[0].textContent;
  legend[0].click();
  press("ArrowRight");
  press("ArrowRight");
  const tip = document.getElementById("tip").innerText.replace(/\\s+/g, " ");
  console.error("seen", first, legend[0].getAttribute("aria-pressed"), plot.dataset.points, tip,
    document.documentElement.scrollWidth - document.documentElement.clientWidth);
</script>
"""


@needs_browser
def test_a_method_can_be_hidden_and_walked_along_with_the_keyboard(runs):
    """SGD ranks first: adam's mean exploded, foof diverged. What the log catches is seen to be caught."""
    path = written(runs)
    path.write_text(path.read_text() + _CLICKS)
    _, log = browse(path)
    (said,) = re.findall(r'CONSOLE.*?"(seen .*)", source', log)
    points = len(losses(runs, "b")) + len(losses(runs, "c"))
    assert said == f"seen {_NASTY} false {points} adam seed 0, update 10 0.50 s loss 1.1 0", (
        "the last: wider than the window"
    )
