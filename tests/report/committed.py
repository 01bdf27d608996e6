"""A folder as docs/results is, made by hand: verdicts that are judged by today's rules, their trials and machines."""

import math

from kfbench.claims.evidence import Figures
from kfbench.claims.file import RULES
from kfbench.claims.verdicts import judge, verdict
from kfbench.results.records import write_csv, write_json
from kfbench.sweep.losses import FIXED_AFTER, FIXED_BEFORE

COLUMNS = (*FIXED_BEFORE, "lr", "damping", *FIXED_AFTER)


def part(of=(1.0, 1.1, 1.0, 1.1, 1.0), to=(2.0, 2.1, 2.0, 2.1, 2.0), names=("foof", "sgd"), **changes):
    """One ratio, judged; five seeds on which it lies near a half."""
    asked = {"measure": "final_train_loss", "of": names[0], "to": names[1], "kind": "as-is", "everywhere": False}
    side = {} if "above" in changes else {"below": 1.0}
    return judge({**asked, **side, "decides": True, **changes}, Figures(list(of), list(to)))


def tuned(**changes):
    """One method of a sweep, as a verdict tells of it."""
    final = {"mean": 0.5, "std": 0.1, "seeds": [1, 2], "losses": [0.4, 0.6], "run_dirs": ["a", "b"]}
    whole = {"opt": "foof", "axes": {"lr": [0.1, 1.0]}, "trials": 7, "diverged": 2, "failed": 0, "seconds_tuning": 3.5}
    whole |= {"best": {"lr": 0.1}, "tuned_loss": 0.4, "final": final, "fragile": 0, "at_edges": [], "robustness": None}
    return whole | changes


def write_claim(folder, id="one", scale="full", parts=None, trials=(), **changes):
    """SCALE/ID with verdict.json and environment.json, and trials.csv where there are trials; returns it."""
    parts = [part()] if parts is None else parts
    trend = scale != "full"
    record = {"id": id, "scale": scale, "source": "A paper (Somebody 2022), Figure 1", "says": f"{id} holds"}
    record |= {"hash": "0" * 12, "rules": RULES, "trend": trend, "verdict": verdict(parts, trend), "parts": parts}
    place = folder / scale / id
    place.mkdir(parents=True)
    write_json(place / "verdict.json", {**record, **changes})
    where = {"cpu": "abacus", "threads": 1, "git_commit": "0123456789abcdef", "git_dirty": False}
    write_json(place / "environment.json", where)
    if trials:
        write_csv(place / "trials.csv", COLUMNS, trials)
    return place


def trial(number, method="foof", loss=0.5, seconds=1.5, round="grid", **changes):
    """A row of trials.csv."""
    status = "diverged" if math.isinf(loss) else "done"
    row = {"trial": number, "method": method, "seed": 0, "round": round, "lr": 0.1, "status": status}
    return {**row, "final_train_loss": loss, "seconds_updates": seconds, "config_hash": number, **changes}
