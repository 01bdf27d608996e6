"""The committed verdicts are those of today's YAMLs and rules, or the table in the docs calls them stale."""

from pathlib import Path

import pytest

from kfbench.claims.file import RULES, read_claim
from kfbench.results.records import read_json

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results"
TABLE = (RESULTS / "README.md").read_text().splitlines()
KEPT = sorted(RESULTS.glob("*/*/verdict.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_verdict_is_current_or_called_stale(path):
    """What the table says of it, tests/report holds to the records."""
    record = read_json(path)
    file = read_claim(ROOT / "configs" / f"{record['id']}.yaml", record["scale"])
    if record.get("rules") == RULES:
        assert record["hash"] == file.hash, f"run kfbench compare configs/{record['id']}.yaml --keep docs/results again"
        assert record["says"] == file.claim.says
    else:
        row = next(line for line in TABLE if line.startswith(f"| [{record['id']}]({record['scale']}/"))
        assert "| stale (" in row
