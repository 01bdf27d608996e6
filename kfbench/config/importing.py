"""Importing what a user names by path."""

import importlib
import os
import sys
from typing import Any

from kfbench.errors import UsageError


def import_object(path: str, kind: str) -> Any:
    """The object at ``package.module:attribute``; UsageError, naming ``kind``, where there is none.

    The working directory is searched too, as ``python -m`` would.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise UsageError(f"{kind} {path!r} is no known name and no path; a path looks like package.module:{kind}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise UsageError(f"{kind} {path!r}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise UsageError(f"{kind} {path!r}: module {module_name} has no attribute {attribute!r}")
    return getattr(module, attribute)
