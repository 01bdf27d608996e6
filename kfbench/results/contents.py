"""What each command leaves in its folder: whatever else lies there is somebody else's."""

import os
import re
from pathlib import Path

from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError

# From which a run goes on; the one before it, and the next one while it takes its place.
CHECKPOINT, RESERVES = "checkpoint.pt", ("checkpoint.previous.pt", "checkpoint.pt.new")
# Paths below the folder, as regular expressions; of directories only what is in them counts.
_RECORDS = r"config\.yaml|environment\.json|summary\.json"
_SEED = r"seed-\d+/(updates\.csv|epochs\.csv|summary\.json|checkpoint\.pt(\.new)?|checkpoint\.previous\.pt)"
_RUN = rf"({_RECORDS}|{_SEED}|loss\.png)"
_TRIAL = rf"trial-[^/]+/(trial\.json|log\.txt|{_RUN})"
# Of what submitit hands over to Slurm, and gets back.
_SLURM = r"slurm/[^/]+"
_WRITTEN_BY = {
    "train": _RUN,
    "similarity": rf"{_RECORDS}|{_SEED}|(similarity|progress|spectrum)\.(csv|png)|heatmap\.png",
    "wallclock": rf"((width|batch_size)=[^/]+/)?({_RECORDS}|windows\.csv)|wallclock\.png",
    "sweep": rf"{_RECORDS}|trials\.csv|best\.yaml|(heatmap|tuned|per-epoch)\.png|[^/]+/(best\.yaml|{_TRIAL})|{_SLURM}",
    "compare": rf"{_RECORDS}|compare\.html|loss\.png|profile\.(csv|png)|[^/]+/({_RUN}|seed-\d+/log\.txt)|{_SLURM}",
}
# What is written in one piece has this name until it is whole.
_TORN = r"(\.tmp)?"


def command_of(directory: Path) -> str | None:
    """Which command's folder it is, by its config.yaml; None where that is missing or nobody's of ours."""
    try:
        tree = read_yaml(directory / "config.yaml") if (directory / "config.yaml").is_file() else {}
    except UsageError:
        return None
    kinds = {"problem": dict, "methods": list, "run": dict}
    if not all(isinstance(tree.get(key), kind) for key, kind in kinds.items()):
        return None
    return next((command for command in _WRITTEN_BY if command in tree), "train")


def foreign_entry(directory: Path, command: str | None) -> Path | None:
    """The first thing below the folder that this command (None: no command) does not write; links are followed nowhere.

    Also the config.yaml of a method's folder that is none of ours.
    """
    known = [_WRITTEN_BY[command]] if command is not None else list(_WRITTEN_BY.values())
    pattern = re.compile(f"({'|'.join(known)}){_TORN}")
    for place, folders, files in os.walk(directory, onerror=_raise):
        folders.sort()
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        for path in sorted(here / name for name in (*files, *links)):
            if path.is_symlink() or not pattern.fullmatch(path.relative_to(directory).as_posix()):
                return path
            # Any name may be a method's: only its config.yaml tells its folder from somebody's folder of records.
            if command == "compare" and path.name == "config.yaml" and command_of(here) is None:
                return path
    return None


def _raise(error: OSError) -> None:
    raise error
