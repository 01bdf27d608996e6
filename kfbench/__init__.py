"""kfbench: a benchmark for neural-network optimizers of the Kronecker family.

``Preconditioning`` puts a method under any torch optimizer in your own loop; ``load(DIR)`` returns
the records of a run; the commands are in ``kfbench --help``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfbench.results.records import Records, load
    from kfbench.updates.preconditioning import Preconditioning

__all__ = ["Preconditioning", "Records", "__version__", "load"]

# Looked up on first use, so that the command line answers without importing torch.
_LAZY = {
    "Preconditioning": "kfbench.updates.preconditioning",
    "Records": "kfbench.results.records",
    "load": "kfbench.results.records",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # slow to import

        return metadata.version("kfbench")
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kfbench' has no attribute {name!r}")
