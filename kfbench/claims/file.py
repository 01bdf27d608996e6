"""Reading a published claim from its YAML: the experiment at one scale, and what is claimed of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kfbench.claims.scales import SCALES, changes
from kfbench.config.command_blocks import Placed, Similarity
from kfbench.config.identity import budget, fingerprint
from kfbench.config.load import configure, dump
from kfbench.config.method_table import ADDED_LATER
from kfbench.config.methods import resolve_method
from kfbench.config.schema import Config
from kfbench.config.section import Float, Section, Text, validated
from kfbench.config.specs import parse_spec
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError, shown

# What only tells people about a claim, or is told in full beside it; all else decides the numbers or the verdict.
_NOT_HASHED = ("source", "says", "notes", "small", "published", "ask")
# Raised where a measure or the arithmetic of verdicts changes its meaning: those of before are then judged anew.
RULES = 3
# What a method that is asked takes from the followed one unless its SPEC says otherwise.
SHARED = ("lr", "damping", "T", "S")
OF_TIME = {"seconds_per_update", "seconds_to_loss"}
# Whose blocks a claim's configuration has; that of `similarity` names methods as they are tuned, so it stands apart.
_COMMANDS = ("sweep", "wallclock")

Spec = Text | dict[str, Any]

Measure = Literal[
    "final_train_loss",
    "test_error",
    "seconds_to_loss",
    "least_damping",
    "stable_share",
    "seconds_per_update",
    "cosine_distance",
    "progress",
    "frobenius_error",
    "error_growth",
    "spectrum_distance",
    "fisher_cosine_distance",
    "inverse_error",
    "toy_loss",
]


class ClaimPart(Section):
    """A predicate over records: a ratio of two figures, below or above a threshold written before the run."""

    measure: Measure = Field(description="what is measured of both, see docs/claims.md")
    of: Text = Field(description="label of a method; for cosine_distance two, joined by ' ~ '")
    to: Text = Field(description="what it is a ratio to")
    below: Float | None = Field(None, gt=0, description="the claim holds where the ratio is below this")
    above: Float | None = Field(None, gt=0, description="the claim holds where the ratio is above this")
    kind: Literal["rescaled", "as-is"] = Field("rescaled", description="of progress: what length the steps have")
    metric: Literal["foof", "euclidean"] | None = Field(
        None, description="of cosine_distance: the inner product, FOOF's unless told"
    )
    layers: Literal["each"] | None = Field(
        None, description="each: of cosine_distance, layer by layer, then their geometric mean"
    )
    everywhere: bool = Field(False, description="the largest ratio counts, not the mean: for theorems")
    decides: bool = Field(True, description="false: reported beside the claim")


class Claim(Section):
    """A published claim that this configuration tests."""

    id: Text = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="its name, and that of its folder of results")
    source: Text = Field(description="paper and figure")
    says: Text = Field(description="the claim in one sentence")
    parts: tuple[ClaimPart, ...] = Field(min_length=1, description="all must hold")
    published: tuple[Spec, ...] = Field((), description="SPECs with the published options, converted; not tuned")
    ask: tuple[Spec, ...] = Field((), description="methods of `similarity`: labels as tuned, or SPECs")
    notes: Text = Field("", description="what differs from the paper")
    scale_free: bool = Field(False, description="true: judged at scale small too, since its size is no part of it")
    small: dict[str, Any] = Field(default_factory=dict, description="section.key -> its value at scale small")


@dataclass(frozen=True)
class ClaimFile:
    """A claim, and the configuration of the commands that its records come from, at one scale."""

    path: Path
    scale: str
    claim: Claim
    config: Config
    """With the blocks of `sweep` and `wallclock`."""
    similarity: Similarity
    """What is asked along whose trajectory; ``follow`` is a label as the tuning has it."""
    blocks: frozenset[str]
    """Of the commands that the file has one for."""

    @property
    def measures(self) -> set[str]:
        """What the parts measure."""
        return {part.measure for part in self.claim.parts}

    @property
    def tunes(self) -> bool:
        """Whether the methods are tuned first: the file has a block for it."""
        return "sweep" in self.blocks

    @property
    def shows_a_trend(self) -> bool:
        """Whether it is tested at another size than its own, and that matters."""
        return self.scale != "full" and not self.claim.scale_free

    @cached_property
    def hash(self) -> str:
        """Equal for equal experiments and predicates at equal scale, wherever they run."""
        run, asked = self.config.run, dict[str, Any]()
        if "similarity" in self.blocks:
            asked["similarity"] = _without(self.similarity.model_dump(), {"spectrum_points": "batch", "first": None})
        if "wallclock" in self.blocks:
            asked["wallclock"] = dump(self.config, "wallclock")["wallclock"]
        if self.tunes:
            # Not where, how many at a time and for how long; nor epochs of the fresh seeds that are those of tuning.
            tried = self.config.sweep.model_dump()
            asked["sweep"] = {k: v for k, v in tried.items() if k not in Placed.model_fields}
            if self.config.sweep.final_epochs == run.epochs:
                asked["sweep"]["final_epochs"] = None
        if self.measures & OF_TIME:  # what only counts losses may be judged anywhere
            asked["machine"] = [run.device, run.threads]
        return fingerprint(
            {
                "rules": RULES,
                "scale": self.scale,
                "budget": budget(self.config),
                "seeds": [run.seed, run.seeds],  # which a budget leaves out
                "methods": self._decided(),
                "published": [_resolved(spec) for spec in self.claim.published],
                "ask": [_resolved(spec, SHARED) for spec in self.claim.ask],
                **asked,
                "claim": {
                    **self.claim.model_dump(exclude=set(_NOT_HASHED)),
                    "parts": [
                        _without(part.model_dump(), {"metric": None, "layers": None}) for part in self.claim.parts
                    ],
                },
            }
        )

    def _decided(self) -> list[dict[str, Any]]:
        """The methods without the swept parameters, whose defaults no trial takes, and without labels of them."""
        swept = self.config.sweep.parameters if self.tunes else ()
        return [
            {"opt": method.opt, **{k: v for k, v in _hashed(method.options).items() if k not in swept}}
            for method in self.config.methods
        ]


def _resolved(spec: Any, from_elsewhere: Sequence[str] = ()) -> Any:
    """A SPEC with its defaults, but for options that it gets elsewhere; a label of the tuning as it is."""
    try:
        opt, given = parse_spec(spec)
    except UsageError:
        return spec
    defaults = resolve_method(spec).options
    own = {k: v for k, v in _hashed(defaults).items() if k in given or k not in from_elsewhere}
    return {"opt": opt, **own}


def _without(dumped: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that did not exist when verdicts were committed, where they say what is usual."""
    return {key: value for key, value in dumped.items() if key not in usual or value != usual[key]}


def _hashed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without options that did not exist when verdicts were committed, where they say nothing."""
    return {name: value for name, value in options.items() if value is not None or name not in ADDED_LATER}


def read_claim(path: Path, scale: str, more: Mapping[str, Any] | None = None) -> ClaimFile:
    """Read the YAML, then as ``claim_of``."""
    return claim_of(path, read_yaml(path), scale, more)


def claim_of(path: Path, tree: Mapping[str, Any], scale: str, more: Mapping[str, Any] | None = None) -> ClaimFile:
    """UsageError, one sentence, for whatever does not fit: before anything runs.

    ``tree`` is the YAML at ``path`` as read; ``more`` are flags that win over file and scale.
    """
    if scale not in SCALES:
        raise UsageError(f"scale must be one of {', '.join(SCALES)}, got {shown(scale)}")
    given = claim_block(tree)
    if not given:
        raise UsageError(f"{path} holds no claim (no compare.claim)")
    where = f"claim {given.get('id')!r} of {path.name}" if isinstance(given, dict) else f"claim of {path.name}"
    if not isinstance(given, dict):
        raise UsageError(f"{where} must be a mapping, got {shown(given)}")
    parts = given.get("parts")
    for index, part in enumerate(parts if isinstance(parts, list) else []):  # each for itself: the sentence names it
        _check_part(validated(ClaimPart, part, f"part {index + 1} of {where}"), where)
    claim = validated(Claim, given, where)
    if not any(part.decides for part in claim.parts):
        raise UsageError(f"{where}: no part decides, so that no verdict could be given")
    # The full one first: what a scale changes depends on it.
    full = configure(tree, commands=_COMMANDS)
    flags = {**changes(full, scale, claim.small), **(more or {})}
    config = configure(tree, flags, commands=_COMMANDS, methods=full.methods) if flags else full
    looks = validated(Similarity, tree.get("similarity") or {}, f"similarity of {path.name}")
    return ClaimFile(path, scale, claim, config, looks, frozenset(tree))


def claim_block(tree: Mapping[str, Any]) -> Any:
    """What a YAML says of a claim; nothing where it holds none."""
    block = tree.get("compare")
    return block.get("claim") if isinstance(block, dict) else None


def claims_in(folder: Path) -> dict[Path, dict[str, Any]]:
    """The YAMLs of a folder that hold a claim, by name; one that cannot be read is named and left out."""
    trees = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            trees[path] = read_yaml(path)
        except UsageError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return {path: tree for path, tree in trees.items() if claim_block(tree)}


def _check_part(part: ClaimPart, where: str) -> None:
    if part.of == part.to:
        raise UsageError(f"{where}: {part.measure} of {part.of!r} to itself is always 1; name two that differ")
    if (part.below is None) == (part.above is None):
        raise UsageError(f"{where}: give below or above for {part.measure} of {part.of!r}, got both or none")
    given = {"metric": part.metric, "layers": part.layers}
    for key, value in given.items() if part.measure != "cosine_distance" else ():
        if value is not None:
            raise UsageError(f"{where}: {key} is of cosine_distance, got {key} {value!r} for {part.measure}")
