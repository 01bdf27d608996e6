"""`kfbench data`: which data sets there are, where they lie, whether they are whole."""

from typing import Annotated, Optional

import typer

from kfbench.cli.command import Debug, Format
from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError, unknown

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, fetch and check data sets.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="data set: " + ", ".join(DATASETS))]
DataDir = Annotated[
    Optional[str], typer.Option("--data-dir", metavar="DIR", help="folder (default: KFBENCH_DATA, or the cache)")
]


@app.command("list")
def list_datasets(data_dir: DataDir = None, format: Format = "table", debug: Debug = False) -> None:
    """List data sets, and where each was found."""
    from kfbench.problems.locations import find_files, way_to_get
    from kfbench.results.tables import print_table

    rows = []
    for name, entry in DATASETS.items():
        try:
            place = str(find_files(name, data_dir)[0].parent)
        except UsageError:
            place = f"not here: {way_to_get(name)}"
        kind = "synthetic" if entry.synthetic else "published"
        rows.append({"name": name, "kind": kind, "training": entry.sizes[0], "test": entry.sizes[1], "place": place})
    print_table(rows, format, {"datasets": rows})


@app.command()
def fetch(name: Name, data_dir: DataDir = None, debug: Debug = False) -> None:
    """Download a data set through torchvision, which verifies the published checksums; generate a synthetic one."""
    from kfbench.problems.datasets import fetch_dataset

    _check_name(name)
    print(f"{name}: {fetch_dataset(name, data_dir)}")


@app.command()
def check(name: Name, data_dir: DataDir = None, format: Format = "table", debug: Debug = False) -> None:
    """Read a data set whole and compare its checksums with the known ones."""
    from kfbench.problems.datasets import check_dataset
    from kfbench.results.tables import print_table

    _check_name(name)
    rows = check_dataset(name, data_dir)
    print_table(rows, format, {"files": rows})
    if any(row["check"] == "differs" for row in rows):
        raise UsageError(f"data set {name!r} has files whose checksum is not the known one")


def _check_name(name: str) -> None:
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
