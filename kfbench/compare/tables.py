"""Tables of `compare`: one row a method by rank, one row a paired difference."""

from collections.abc import Mapping
from typing import Any

from kfbench.results.intervals import ENOUGH_FOR_A_MEDIAN
from kfbench.results.seeds import ENOUGH_PAIRS
from kfbench.results.tables import bits, number


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of `compare`, the best method first."""
    return [_row(label, method) for label, method in summary["methods"].items()]


def _row(label: str, method: Mapping[str, Any]) -> dict[str, Any]:
    mean, std, target = method["mean"], method["std"], method["to_target"]
    return {
        "rank": method["rank"],
        "method": label,
        "final train loss": number(mean["final_train_loss"], 4),
        "std": number(std["final_train_loss"], 2),
        "test accuracy": number(mean["test_accuracy"], 4),
        **bits(mean),
        "updates to target": number(target["updates"], 6),
        "s to target": number(target["seconds_updates"], 4),
        "missed": f"{target['missed']} of {target['of']}",
        "ms/update": number(mean["seconds_per_update"], 4, 1e3),
        "trials": "-" if method["trials"] is None else method["trials"],
        "seeds": len(method["seeds"]),
    }


def difference_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Final loss of every other method as a multiple of the reference's, with its interval."""
    return [_difference(row) for row in summary["differences"]]


def _difference(row: Mapping[str, Any]) -> dict[str, Any]:
    known = row["low"] is not None
    significant = "yes" if row["significant"] else "no"
    if row["n"] < ENOUGH_PAIRS:  # too few to say no
        significant = f"unknown: {row['n']} seeds, {ENOUGH_PAIRS} needed"
    return {
        "method": row["method"],
        f"final loss / {row['reference']}": number(row["ratio"], 4),
        "95% interval": f"{number(row['low'], 4)} to {number(row['high'], 4)}" if known else "",
        "pairs": row["n"],
        "significant": significant,
    }


def target_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every method needs to the target: median over seeds, their range, the interval of the median."""
    return [_to_target(label, method["to_target"]) for label, method in summary["methods"].items()]


def _to_target(label: str, target: Mapping[str, Any]) -> dict[str, Any]:
    row = {"method": label}
    for name, key, digits in (("updates", "updates", 6), ("s", "seconds_updates", 4)):
        lowest, highest = (number(target[f"{key}_{end}"], digits) for end in ("lowest", "highest"))
        low, high = target[f"{key}_low"], target[f"{key}_high"]
        row[f"{name} to target"] = number(target[key], digits)
        row[f"{name}: seeds"] = f"{lowest} to {highest}"
        unknown = f"unknown: {target['of']} seeds, {ENOUGH_FOR_A_MEDIAN} needed"
        row[f"{name}: 95% interval"] = unknown if low is None else f"{number(low, digits)} to {number(high, digits)}"
    return {**row, "missed": f"{target['missed']} of {target['of']}"}


def profile_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of `compare --profile`: on how many problems each method is within a factor of the best."""
    rows = []
    for label, method in summary["methods"].items():
        within = {
            "best" if tau == "1" else f"within {tau}x": f"{count} of {method['of']}"
            for tau, count in method["within"].items()
        }
        solved = f"{method['solved']} of {method['of']}"
        rows.append({"method": label, **within, "solved": solved, "worst ratio": number(method["worst_ratio"], 4)})
    return rows


def cost_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a problem: its target, and what it cost each method."""
    return [
        {
            "problem": row["problem"],
            "target loss": number(row["target"]["loss"], 4),
            **{label: number(cost, 4) for label, cost in row["costs"].items()},
        }
        for row in summary["problems"]
    ]


def target_sentence(summary: Mapping[str, Any]) -> str:
    """Which loss "to target" means, and why that one."""
    loss, rule = summary["target"]["loss"], summary["target"]["rule"]
    return f"target: {rule}" if loss is None else f"target: training loss {loss:.4g}, {rule}"
