"""Reading YAML as people mean it: 1e-3 is a number, a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kfbench.config.schema import TOP_KEYS
from kfbench.errors import UsageError


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; 1e-3 is a number, a key given twice is an error. UsageError for anything else."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"config {file} cannot be read: {error}") from error
    tree = parse_yaml(text, f"config {file}")
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"config {file} must be a mapping of sections ({', '.join(TOP_KEYS)})")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for floats such as 1e-3, and for duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # here, before "<<" merges other mappings into it
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:i]):
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        return node


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; UsageError, beginning with ``what``, where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} cannot be read: {error}") from error
    except Exception as error:  # a tag on the wrong value makes PyYAML fail in many ways: !!timestamp x
        raise UsageError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


_SCIENTIFIC = re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789."))
