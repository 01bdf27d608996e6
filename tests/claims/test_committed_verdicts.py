"""The committed verdicts are those of today's YAMLs, and the table in the docs says what they say."""

from pathlib import Path

import pytest

from kfbench.claims.file import read_claim
from kfbench.claims.tables import verdict_rows
from kfbench.results.records import read_json

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results"
KEPT = sorted(RESULTS.glob("*/*/verdict.json"))


def table_row(record):
    """A claim's row in docs/results/README.md."""
    (row,) = verdict_rows([record])
    folder = f"{record['scale']}/{record['id']}"
    return f"| [{record['id']}]({folder}) | {row['says']} | {row['verdict']} | {row['ratios']} |"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_verdict_is_current_and_told(path):
    record = read_json(path)
    file = read_claim(ROOT / "configs" / f"{record['id']}.yaml", record["scale"])
    assert record["hash"] == file.hash, f"run kfbench compare configs/{record['id']}.yaml --keep docs/results again"
    assert record["says"] == file.claim.says
    assert table_row(record) in (RESULTS / "README.md").read_text()
