"""Shape annotations of the numerical core, checked while the tests run, at a cost only where there are shapes."""

from collections.abc import Callable
from typing import Any, get_type_hints

import jaxtyping

_with_shapes = jaxtyping.jaxtyped


def check_annotations(packages: list[str]) -> None:
    """From here on functions of ``packages`` check their arguments and results; call it before they load.

    All of them but those that are defined within others and have no shapes.
    """
    # The hook writes this name before every function and dataclass that it loads.
    jaxtyping.jaxtyped = _cheapest
    jaxtyping.install_import_hook(packages, "beartype.beartype")


def _cheapest(*, typechecker: Callable) -> Callable:
    """Keeping account of dimensions costs ten times a check of types: not where no annotation has any."""

    def decorate(checked: Any) -> Any:
        if isinstance(checked, type) or _has_shapes(checked):
            return _with_shapes(typechecker=typechecker)(checked)
        if "<locals>" in checked.__qualname__:  # would be decorated anew at each call of what defines it
            return checked
        return typechecker(checked)

    return decorate


def _has_shapes(function: Any) -> bool:
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # names of a class that is not defined yet; the hook leaves those unchecked itself
        return True
    return any("jaxtyping." in repr(hint) for hint in hints.values())
