"""Reading YAML as people mean it: 1e-3 is a number, a key given twice is an error; and never without end."""

from __future__ import annotations

import os
import re
import select
import stat
from pathlib import Path
from typing import Any

import yaml

from kfbench.config.schema import TOP_KEYS
from kfbench.config.section import BEYOND_NUMBERS
from kfbench.errors import UsageError, described

# Ten thousand methods with all their options are less; the reader takes half a minute for so many bytes.
_MOST_BYTES = 4_000_000
# Values, keys and brackets, those behind an alias counted wherever it stands.
_MOST_NODES = 1_000_000
# How long a program that writes into a pipe may think.
_PATIENCE_SECONDS = 30.0


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping from a file, or a pipe such as /dev/stdin, readable once. UsageError for anything else."""
    try:
        text = _content(file).decode("utf-8-sig")  # a byte order mark is no part of the first key
    except (OSError, ValueError) as error:
        raise UsageError(f"config {file} cannot be read: {error}") from error
    tree = parse_yaml(text, f"config {file}")
    if tree is None:  # an empty file, or one of comments alone
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"config {file} must be a mapping of sections ({', '.join(TOP_KEYS)})")
    return tree


def _content(file: Path) -> bytes:
    """Its bytes; OSError where they cannot be had, where it is neither file nor pipe, or where they do not end."""
    # Without waiting: a pipe that nobody writes to would never open.
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'a device'}, expected a file")
        parts: list[bytes] = []
        while part := _next_part(handle):
            parts.append(part)
            if sum(map(len, parts)) > _MOST_BYTES:
                raise OSError(f"it holds more than {_MOST_BYTES} bytes")
        if stat.S_ISFIFO(mode) and not parts:
            raise OSError("it is a pipe that holds nothing, or has been read before")
        return b"".join(parts)
    finally:
        os.close(handle)


def _next_part(handle: int) -> bytes:
    """Nothing at the end."""
    try:
        return os.read(handle, _MOST_BYTES)
    except BlockingIOError:  # a pipe whose writer is still at work
        if not select.select([handle], [], [], _PATIENCE_SECONDS)[0]:
            raise OSError(f"nothing came out of the pipe for {_PATIENCE_SECONDS:g} seconds") from None
        return _next_part(handle)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for floats such as 1e-3, and for duplicate keys; refused where aliases multiply without measure."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark: Any = event.start_mark
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and node not in self._sizes:  # it is still being read
            raise yaml.composer.ComposerError(None, None, f"{event.anchor!r} holds itself", mark)
        if node not in self._sizes:
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
            self._sizes[node] = 1 + sum(self._sizes[one] for one in inner)
        if self._sizes[node] > _MOST_NODES:
            problem = f"more than {_MOST_NODES} values, as its aliases stand for them"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # here, before "<<" merges other mappings into it
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_yaml_float(self, node: Any) -> float | str:  # type: ignore[override]
        return str(node.value) if ":" in node.value else super().construct_yaml_float(node)

    def construct_yaml_int(self, node: Any) -> int | str:  # type: ignore[override]
        if ":" in node.value:  # YAML 1.1 counts 1:30 in sixties; START:STOP without a STEP is no number
            return str(node.value)
        # The length first: of thousands of digits Python makes no number.
        number = super().construct_yaml_int(node) if len(node.value) < 1000 else BEYOND_NUMBERS
        return number if abs(number) < BEYOND_NUMBERS else str(node.value)


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; UsageError, beginning with ``what``, where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} cannot be read: {error}") from error
    except Exception as error:  # a tag on the wrong value makes PyYAML fail in many ways: !!timestamp x
        raise UsageError(f"{what} cannot be read: {described(error)}") from error


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
# YAML 1.1 wants a dot and the exponent's sign; PyYAML would read 1e-3 as text.
_SCIENTIFIC = re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
# PyYAML tries it on values that begin with one of these alone.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789."))
