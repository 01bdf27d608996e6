"""Sums of outer products."""

import pytest
import torch

from kfbench.layers.outer_products import add_outer_products
from tests.properties import assert_close


@pytest.mark.parametrize("d", [1, 2, 255, 513, 784])
@pytest.mark.parametrize("rows", [1, 100])
def test_symmetric_product_equals_the_plain_one(d, rows):
    x = torch.randn(rows, d, dtype=torch.float64)
    start = torch.randn(d, d, dtype=torch.float64)
    start = start + start.T
    got = start.clone()
    add_outer_products(got, x, keep=0.9, scale=0.3)
    assert_close(got, 0.9 * start + 0.3 * x.T @ x, 1e-13)
