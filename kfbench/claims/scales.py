"""At which size a claim is tested: smoke, small or full, as changes to the configuration of the full one."""

from collections.abc import Mapping
from typing import Any

from kfbench.config.problem_table import MODELS, training_samples
from kfbench.config.schema import SECTIONS, Config
from kfbench.errors import unknown

SCALES = ("smoke", "small", "full")
# Scale small: default widths divided by 4, a sixth of the images, three epochs; full batches of 200 images.
_NARROWER, _IMAGES, _EPOCHS = 4, 10_000, 3
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
    images = training_samples(full.problem.dataset, full.problem.train_samples, full.problem.context)
    if full.run.batch_size >= images:
        few = min(_FULL_BATCH_IMAGES, images)
        flags: dict[str, Any] = {"train_samples": few, "batch_size": few, "epochs": _FULL_BATCH_EPOCHS}
    else:
        flags = {"train_samples": min(_IMAGES, images), "epochs": _EPOCHS}
    if full.problem.model in MODELS and (usual := MODELS[full.problem.model].width):
        flags["width"] = min(full.problem.width or usual, usual // _NARROWER)
    if full.sweep.final_epochs is not None:
        flags["final_epochs"] = flags["epochs"]  # else fresh seeds would train for as long as at full size
    own = {_key(name): value for name, value in overrides.items()}
    if "updates" in own:
        del flags["epochs"]  # both together are refused
    flags |= own
    # `quick` by itself makes it 20 updates, whatever else is said.
    return flags | ({"quick": True} if scale == "smoke" else {})


def _key(name: str) -> str:
    """The key of "section.key"; UsageError for one that the schema does not have."""
    accepted = [f"{section}.{key}" for section in _CHANGED for key in SECTIONS[section].model_fields]
    if name not in accepted:
        raise unknown("key of a claim's small", name, accepted)
    return name.rpartition(".")[2]
