"""Importing what a user names by path: from wherever Python looks, and last of all from the working folder."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kfbench.errors import UsageError, described

# Where it is set, Python does not put the working folder in front of all that it imports.
_SAFE_PATH = "PYTHONSAFEPATH"


def import_object(path: str, kind: str) -> Any:
    """The object at ``package.module:attribute``; UsageError, naming ``kind``, where there is none.

    A module that is found nowhere else is looked for in the working folder, which then stays the last place to be
    searched: it may import its neighbours as late as it likes.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise UsageError(f"{kind} {path!r} is no known name and no path; a path looks like package.module:{kind}")
    try:
        if not _is_found(module_name.partition(".")[0]) and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise UsageError(f"{kind} {path!r}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        # Its file, as it may be another one than is meant: one of that name that is installed comes first.
        where = f" ({module.__file__})" if vars(module).get("__file__") else ""
        raise UsageError(f"{kind} {path!r}: module {module_name}{where} has no attribute {attribute!r}") from error
    except Exception as error:  # a module may answer for its attributes itself
        raise UsageError(f"{kind} {path!r} cannot be had: {described(error)}") from error


def _is_found(name: str) -> bool:
    """Whether there is such a module, or package with a file, on the path as it is."""
    if name in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # it is no name of a module
        return False
    return spec is not None and spec.origin is not None


@contextmanager
def children_away_from_working_folder() -> Iterator[None]:
    """Python that is started within the block, to fork or spawn from, imports nothing from the working folder."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
