"""The runs of a comparison as `train`'s plot takes them."""

from kfbench.compare.comparison import Comparison
from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS, Records


def records_of(comparison: Comparison) -> list[Records]:
    """The runs of a comparison, each method under its label, as ``plot_losses`` takes them."""
    import pandas as pd

    config = {"problem": comparison.problem, "run": comparison.run}
    records = []
    for method in comparison.methods:
        # Its label here, which need not be that under which it ran.
        epochs = [row | {"method": method.label} for record in method.seeds for row in record.epochs]
        losses = [
            {"method": method.label, "seed": record.seed, "update": update, "loss": loss}
            for record in method.seeds
            for update, loss in record.losses
        ]
        tables = (pd.DataFrame(losses, columns=list(UPDATE_COLUMNS)), pd.DataFrame(epochs, columns=list(EPOCH_COLUMNS)))
        # Without a summary, of which a plot needs nothing.
        records.append(Records(method.seeds[0].folder.parent, config, method.environment, {}, *tables))
    return records
