"""One order of folders without exceptions, and what each place may know."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "kfbench"
# A file imports its own folder, or what stands to the left.
ORDER = (
    "errors config results problems curvature preconditioners step_rules executors updates training "
    "wallclock similarity sweep compare claims cli"
)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kfbench."):
            yield node.module.removeprefix("kfbench.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("kfbench.") for a in node.names if a.name.startswith("kfbench."))


def test_imports_follow_the_one_order():
    order = ORDER.split()
    places = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert places - {"__init__", "__main__"} == set(order)
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in _imports(path) if own in order else ():
            assert order.index(module.split(".")[0]) <= order.index(own), f"{path} imports {module}"


def test_records_import_nothing_of_ours():
    assert not list(_imports(PACKAGE / "results" / "records.py"))


def test_layer_types_are_named_in_one_file():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "problems" and path.name != "layers.py":
            text = path.read_text()
            assert "nn.Linear" not in text, path
            assert "nn.Conv2d" not in text, path


def test_where_clocks_are_read():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("updates", "training", "wallclock", "executors", "cli"):
            assert "perf_counter" not in path.read_text(), path
