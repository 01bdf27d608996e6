"""The house: one order of folders without exceptions, and what each place may know."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kfbench"
# A file imports its own folder, or what stands to the left.
ORDER = (
    "errors config results problems layers curvature preconditioners step_rules executors updates training "
    "wallclock similarity sweep compare claims report cli"
)
FILES = sorted(PACKAGE.rglob("*.py"))
# Several of a kind in different folders have one name; of all others no two share one.
KINDS = {"run.py", "tables.py", "plots.py", "contract.py", "__init__.py"}
# Within these, only the files named may import torch; of tables and plots none.
WITHOUT_TORCH = {
    "config": (),
    "results": (),
    "executors": (),
    "sweep": (),
    "cli": (),
    "compare": ("run",),
    "report": (),
    "claims": ("run", "directions", "inverses", "toy"),
    "wallclock": ("run", "bench", "memory_probe", "tasks"),
}


def _module(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kfbench."):
            yield node.module.removeprefix("kfbench.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("kfbench.") for a in node.names if a.name.startswith("kfbench."))


def test_imports_follow_the_one_order():
    order = ORDER.split()
    places = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert places - {"__init__", "__main__"} == set(order)
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in _imports(path) if own in order else ():
            assert order.index(module.split(".")[0]) <= order.index(own), f"{path} imports {module}"


def test_records_import_nothing_of_ours():
    assert not list(_imports(PACKAGE / "results" / "records.py"))


def test_what_needs_no_torch_is_imported_where_there_is_none():
    barred = [
        _module(path)
        for path in FILES
        if path.stem in ("tables", "plots") or path.stem not in WITHOUT_TORCH.get(path.parent.name, (path.stem,))
    ]
    assert {"kfbench.sweep.run", "kfbench.wallclock.ratios", "kfbench.training.plots", "kfbench.cli.app"} <= set(barred)
    program = f"""
import importlib, sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None  # importing it raises ImportError
for name in {barred}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def _texts(path):
    return [
        n.value
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def test_every_path_given_as_text_is_there():
    """A fork server hides a wrong one; and each stands in one place."""
    from kfbench.config.method_table import METHODS

    paths = [text for path in FILES for text in _texts(path) if re.fullmatch(r"kfbench(\.\w+)+(:\w+)?", text)]
    paths += [path for entry in METHODS.values() for path in (entry.optimizer, entry.preconditioner) if path]
    assert "kfbench.training.worker:run_trial" in paths and "kfbench.preconditioners.foof:FOOF" in paths
    for path in paths:
        module, _, name = path.partition(":")
        found = importlib.import_module(module)
        assert not name or hasattr(found, name), path
    ours = [path for path in paths if ":" in path and path.startswith("kfbench.")]
    assert [path for path, count in Counter(ours).items() if count > 1] == []


def test_layer_types_are_named_where_they_live():
    for path in FILES:
        if "problems" not in path.parts and path.name != "finding.py" and not path.name.endswith("_layer.py"):
            assert not re.search(r"nn\.(Linear|Conv\w*|Embedding)\b", path.read_text()), path


def test_where_clocks_are_read():
    for path in FILES:
        if path.parent.name not in ("updates", "training", "wallclock", "executors", "cli"):
            assert not re.search(r"perf_counter|monotonic\(|time\.time\(", path.read_text()), path


def test_only_commands_and_their_tables_print():
    for path in FILES:
        if path.parent.name != "cli" and path != PACKAGE / "results" / "tables.py":
            assert not re.search(r"(?m)(^|[^\w])print\(", path.read_text()), path


def test_nobody_sets_anothers_attributes_by_name():
    for path in FILES:
        assert not re.search(r"\b(setattr|delattr|__setattr__)\(", path.read_text()), path


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name)
def test_no_folder_and_no_file_holds_two_questions(folder):
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 14
    for path in files:
        assert len(path.read_text().splitlines()) <= 300, path


def test_no_two_files_share_a_name_but_those_of_a_kind():
    counts = Counter(path.name for path in FILES)
    assert {name for name, count in counts.items() if count > 1} <= KINDS


def test_tests_mirror_the_tree():
    for folder in (Path(__file__).parent / name for name in ORDER.split()):
        assert not folder.exists() or (PACKAGE / folder.name).is_dir()
    folders = {p.name for p in Path(__file__).parent.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert folders - {"measurements"} <= set(ORDER.split())
