"""Quotes: one command brings them up to date, --check tells where they are not; those of our docs are current."""

from pathlib import Path

import pytest

from kfbench.report.judged import gather
from kfbench.report.quoting import quoted
from kfbench.report.run import write_quotes
from tests.report.committed import part, write_claim

ROOT = Path(__file__).parent.parent.parent
RESULTS, PAGE = Path("docs/results"), Path("docs/page.md")
ASKED = """Before.

<!-- kfbench report: {asked} -->
what stood here
<!-- end -->

After; <!-- end -->.
"""


@pytest.fixture(autouse=True)
def results():
    write_claim(RESULTS, "one", says="a | b <!-- end -->\nholds")
    write_claim(RESULTS, "two", parts=[part(above=0.8), part(decides=False)])
    write_claim(RESULTS, "one", scale="small")


def write(asked, page=PAGE):
    page.write_text(ASKED.format(asked=asked))
    return page


QUOTES = {
    "verdicts full": (
        "| claim | says | verdict | ratios that decide: measured (95 % interval), claimed |\n"
        "|---|---|---|---|\n"
        "| [one](results/full/one) | a \\| b &lt;!-- end --> holds | reproduced | foof / sgd 0.509 (0.494 to 0.526), "
        "claimed < 1 |\n"
        "| [two](results/full/two) | two holds | not reproduced | foof / sgd 0.509 (0.494 to 0.526), claimed > 0.8 |"
    ),
    "counts": "Of 3 claims at scale small or full: 1 trend (as claimed), 1 reproduced, 1 not reproduced.",
    "counts small": "Of 1 claims at scale small: 1 trend (as claimed).",
    "ratios two full": (
        "| measure | ratio of | to | measured | 95% interval | n | claimed | outcome |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| final train loss | foof | sgd | 0.509 | 0.494 to 0.526 | 5 | > 0.8 | not reproduced |\n"
        "| final train loss | foof | sgd | 0.509 | 0.494 to 0.526 | 5 | < 1 | (reproduced, beside the claim) |"
    ),
}


@pytest.mark.parametrize("asked", QUOTES)
def test_what_is_asked_is_quoted_and_nothing_else_changes(kfbench, asked):
    page = write(asked)
    code, out, err = kfbench("report", RESULTS, "--quote", page)
    assert (code, out) == (0, "") and err == f"quoted anew: {page}\n"
    assert page.read_text() == ASKED.format(asked=asked).replace("what stood here", QUOTES[asked])
    before = page.stat().st_mtime_ns
    assert kfbench("report", RESULTS, "--quote", page) == (0, "", "") and page.stat().st_mtime_ns == before


def test_check_names_what_is_not_current_and_writes_nothing(kfbench):
    page, other = write("verdicts"), write("counts", Path("other.md"))
    kfbench("report", RESULTS, "--quote", page, "--quote", other)
    assert kfbench("report", RESULTS, "--quote", page, "--quote", other, "--check") == (0, "", "")
    page.write_text(page.read_text().replace("0.509", "0.409", 1))
    before = page.read_bytes()
    code, out, err = kfbench("report", RESULTS, "--quote", page, "--quote", other, "--check")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "not what the records say: docs/page.md; run kfbench report docs/results --quote docs/page.md" in err
    assert page.read_bytes() == before
    assert kfbench("report", RESULTS, "--quote", page)[0] == 0 and "0.409" not in page.read_text()
    # The other way: the records change.
    write_claim(RESULTS, "three")
    assert kfbench("report", RESULTS, "--quote", page, "--check")[0] == 1


def test_a_site_and_quotes_of_one_call(kfbench):
    code, _, err = kfbench("report", RESULTS, "--out", "site", "--quote", write("counts"))
    assert code == 0 and err == "site: site/index.html\nquoted anew: docs/page.md\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("verdict", "unknown quote in docs/page.md 'verdict' (did you mean 'verdicts [SCALE]'?)"),
        ("verdicts full more", "unknown quote"),
        ("ratios two", "unknown quote"),
        ("", "unknown quote"),
        ("verdicts smoke", "there is no verdict to quote for 'verdicts smoke'"),
        ("ratios three full", "there is no verdict to quote"),
    ],
)
def test_what_cannot_be_quoted_is_one_sentence_and_no_document_is_written(kfbench, asked, said):
    sound, page = write("counts", Path("sound.md")), write(asked)
    before = sound.read_bytes(), page.read_bytes()
    code, out, err = kfbench("report", RESULTS, "--quote", sound, "--quote", page)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1, err
    assert (sound.read_bytes(), page.read_bytes()) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<!-- kfbench report: counts -->\nno end", "has no <!-- end --> behind it"), (b"\xff", "is no text"),
     (b"<!-- kfbench report: counts -->\n<!-- kfbench report: counts -->\n<!-- end -->", "has no <!-- end -->")],
)  # fmt: skip
def test_a_document_that_cannot_be_quoted_into_is_named(kfbench, content, said):
    PAGE.write_bytes(content)
    code, _, err = kfbench("report", RESULTS, "--quote", PAGE)
    assert code == 2 and said in err and "docs/page.md" in err and PAGE.read_bytes() == content


def test_a_document_behind_a_link_is_written_and_the_link_stays():
    Path("link.md").symlink_to(write("counts"))
    assert write_quotes(gather(RESULTS), [Path("link.md")], check=False) == [Path("link.md")]
    assert Path("link.md").is_symlink() and QUOTES["counts"] in PAGE.read_text()


@pytest.mark.parametrize("page", ["docs/results/README.md"])
def test_the_quotes_of_our_docs_are_what_our_records_say(page):
    text, current = quoted(ROOT / page, gather(ROOT / "docs" / "results"))
    assert text == current, f"run kfbench report docs/results --quote {page}"
