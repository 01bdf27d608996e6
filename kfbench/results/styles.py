"""One style for one method everywhere: a colour and dashes, told apart by colour-blind readers too; titles of plots.

Families share a colour (Okabe & Ito 2008, Color Universal Design, and a brown); dashes tell their members apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from kfbench.config.labels import method_name

_SOLID: tuple[float, ...] = ()
_DASHED, _DASH_DOT, _DOTTED = (5.0, 2.0), (7.0, 2.0, 1.5, 2.0), (1.5, 1.5)
_BLACK, _ORANGE, _PINK, _BLUE, _RED, _GREEN, _SKY, _BROWN = (
    "#000000",
    "#E69F00",
    "#CC79A7",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#7F5200",
)


@dataclass(frozen=True)
class Look:
    """A colour, and lengths of line and gap in points; none: solid."""

    colour: str
    dashes: tuple[float, ...]


LOOKS = {
    "sgd": Look(_BLACK, _SOLID),
    "adam": Look(_ORANGE, _SOLID),
    "adamw": Look(_PINK, _SOLID),
    "foof": Look(_BLUE, _SOLID),
    "foof-kfac-damping": Look(_BLUE, _DASHED),
    "foof-centred": Look(_BLUE, _DASH_DOT),
    "foof-per-sample": Look(_BLUE, _DOTTED),
    "kfac": Look(_RED, _SOLID),
    "kfac-tridiagonal": Look(_RED, _DOTTED),
    "kflr": Look(_RED, _DASHED),
    "kfra": Look(_RED, _DASH_DOT),
    "ekfac": Look(_GREEN, _SOLID),
    "ekfac-ra": Look(_GREEN, _DASHED),
    "natural": Look(_SKY, _SOLID),
    "gn-cg": Look(_SKY, _DASHED),
    "shampoo": Look(_BROWN, _DASH_DOT),
    "soap": Look(_BROWN, _SOLID),
    "muon": Look(_ORANGE, _DASHED),
}
# A user's methods: three more colours (Tol 2021, the muted scheme), by name, so that one keeps its own too.
_OTHERS = ("#882255", "#999933", "#777777")
# Of the second and further variants of one method; no method has these as its own.
_VARIANTS = ((10.0, 3.0), (4.0, 1.5, 1.0, 1.5, 1.0, 1.5), (3.0, 3.0), (12.0, 2.0, 3.0, 2.0), (1.0, 3.0))


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each label: its method's own, with other dashes for the further variants of one method."""
    by_label: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for label in labels:
        name = method_name(label)
        # crc32, since Python's hash of a text differs from process to process.
        own = LOOKS.get(name, Look(_OTHERS[crc32(name.encode()) % len(_OTHERS)], _SOLID))
        variant = seen.get(name, 0)
        by_label[label] = Look(own.colour, _VARIANTS[(variant - 1) % len(_VARIANTS)]) if variant else own
        seen[name] = variant + 1
    return by_label


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What matplotlib draws the line of each label with."""
    return {
        label: {"color": look.colour, "linestyle": (0, look.dashes) if look.dashes else "-"}
        for label, look in looks(labels).items()
    }


def title(problem: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What was trained, and for how long."""
    budget = f"{run['epochs']} epochs" if run.get("epochs") else f"{run['updates']} updates"
    quick = " (quick run, not for comparison)" if run.get("quick") else ""
    part = f" (first {problem['train_samples']})" if problem.get("train_samples") else ""
    width = f" of width {problem['width']}" if problem.get("width") else ""
    amp = run.get("amp", "none")
    budget += f", autocast {amp}" if amp != "none" else ""
    return f"{problem['dataset']}{part}, {problem['model']}{width}, batch size {run['batch_size']}, {budget}{quick}"
