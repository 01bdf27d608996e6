"""At which size a claim is tested: smoke, small or full, as changes to the configuration of the full one."""

from collections.abc import Mapping
from typing import Any

from kfbench.config.problem_table import DATASETS, MODELS
from kfbench.config.schema import SECTIONS, Config
from kfbench.errors import unknown

SCALES = ("smoke", "small", "full")
# Scale small: hidden widths divided by 4, a sixth of the images, three epochs; full batches of 200 images.
_WIDTH, _IMAGES, _EPOCHS = 250, 10_000, 3
# What a claim itself may say of scale small.
_CHANGED = ("problem", "run", "sweep")
_FULL_BATCH_IMAGES, _FULL_BATCH_EPOCHS = 200, 100


def changes(full: Config, scale: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that turn the configuration of scale full into that of ``scale``.

    ``overrides`` are what the claim itself says of scale small, by "section.key". Scale smoke is small
    with 20 updates.
    """
    if scale == "full":
        return {}
    images = _images(full)
    if full.run.batch_size >= images:
        few = min(_FULL_BATCH_IMAGES, images)
        found: dict[str, Any] = {"train_samples": few, "batch_size": few, "epochs": _FULL_BATCH_EPOCHS}
    else:
        found = {"train_samples": min(_IMAGES, images), "epochs": _EPOCHS}
    if "width" in (MODELS[full.problem.model].options if full.problem.model in MODELS else ()):
        found["width"] = min(full.problem.width or _WIDTH, _WIDTH)
    if full.sweep.final_epochs is not None:
        found["final_epochs"] = found["epochs"]
    own = {_key(name): value for name, value in overrides.items()}
    if "updates" in own:
        del found["epochs"]
    found |= own
    return found | ({"quick": True} if scale == "smoke" else {})


def _key(name: str) -> str:
    """The key of "section.key"; UsageError for one that the schema does not have."""
    accepted = [f"{section}.{key}" for section in _CHANGED for key in SECTIONS[section].model_fields]
    if name not in accepted:
        raise unknown("key of a claim's small", name, accepted)
    return name.rpartition(".")[2]


def _images(config: Config) -> int:
    size = DATASETS[config.problem.dataset].sizes[0]
    return min(config.problem.train_samples or size, size)
