"""Rows of updates.csv whose numbers stay on the device until one transfer reads them all."""

from typing import Any

import torch
from torch import Tensor


class Block:
    """At most ``size`` updates: ``losses`` [size], and the rows, whose other figures may be tensors [] too."""

    def __init__(self, size: int, device: torch.device) -> None:
        # float64 holds the losses of a model of either precision as they are.
        self.losses = torch.zeros(size, device=device, dtype=torch.float64)
        self.rows: list[dict[str, Any]] = []

    def begin(self, row: dict[str, Any]) -> Tensor:
        """The row of the coming update; returns where its loss [] is to be written."""
        self.rows.append(row)
        return self.losses[len(self.rows) - 1]

    def read(self) -> list[dict[str, Any]]:
        """All rows with plain numbers; the block is empty then."""
        rows, self.rows = self.rows, []
        places = [(row, key) for row in rows for key, value in row.items() if isinstance(value, Tensor)]
        # One transfer, since each waits for the device.
        figures = [self.losses[: len(rows)], *(row[key].double()[None] for row, key in places)]
        values = torch.cat(figures).tolist()
        for (row, key), value in zip(places, values[len(rows) :], strict=True):
            row[key] = value
        return [{**row, "loss": value} for row, value in zip(rows, values, strict=False)]
