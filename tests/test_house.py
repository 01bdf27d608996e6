"""The arrow problems -> curvature -> preconditioners -> engine -> results -> cli, and what each place may know."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "kfbench"
ORDER = ["config", "problems", "curvature", "preconditioners", "engine", "results", "cli"]
# Imported from anywhere: they import nothing of the six folders.
EVERYWHERE = ["claims", "config", "errors", "scales"]
# Records and the arithmetic over them: they import nothing but each other, so the engine may write and
# judge with them; tables, plots, folders and gates stay out of its reach.
PURE_RESULTS = [
    f"results.{name}"
    for name in (
        *("records", "environment", "intervals", "measures", "similarities", "statistics", "timings", "trials"),
        "verdicts",
    )
]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kfbench."):
            yield node.module.removeprefix("kfbench.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("kfbench.") for a in node.names if a.name.startswith("kfbench."))


def test_imports_point_one_way():
    for folder in ORDER:
        for path in (PACKAGE / folder).rglob("*.py"):
            for module in _imports(path):
                target = module.split(".")[0]
                if target in EVERYWHERE or module in PURE_RESULTS:
                    continue
                assert ORDER.index(target) <= ORDER.index(folder), f"{path} imports {module}"


def test_what_is_imported_from_anywhere_imports_no_folder():
    for name in EVERYWHERE:
        for path in [PACKAGE / f"{name}.py", *(PACKAGE / name).glob("*.py")]:
            for module in _imports(path) if path.exists() else ():
                assert module.split(".")[0] in EVERYWHERE, f"{path} imports {module}"


def test_records_import_nothing_of_ours():
    assert not list(_imports(PACKAGE / "results" / "records.py"))


def test_arithmetic_over_records_imports_nothing_else():
    for module in PURE_RESULTS:
        for imported in _imports(PACKAGE / f"{module.replace('.', '/')}.py"):
            assert imported in PURE_RESULTS, f"{module} imports {imported}"


def test_layer_types_are_named_in_one_file():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "problems" and path.name != "layers.py":
            text = path.read_text()
            assert "nn.Linear" not in text, path
            assert "nn.Conv2d" not in text, path


def test_only_the_engine_reads_clocks():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("engine", "cli"):
            assert "perf_counter" not in path.read_text(), path
