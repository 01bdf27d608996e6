"""What a method says of itself, read once, and what holds where it says nothing."""

from kfbench.preconditioners.contract import Traits, vectors_of
from kfbench.preconditioners.ekfac import EKFAC
from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.kflr import KFLR
from kfbench.preconditioners.natural import NaturalGradient


class Silent:
    """Says nothing but what it must."""

    fisher, orders = "none", ("same",)


def test_defaults_hold_where_a_method_says_nothing():
    traits = Traits.of(Silent())
    assert traits == Traits(fisher="none", orders=("same",))
    assert traits.apply_remembers and not traits.draws_points and not traits.counts_retries
    assert traits.check(-1.0, 0, 0) is None
    assert (traits.multiply_adds, traits.multiply_adds_network, traits.approximation) == (None, None, None)


def test_what_ours_say():
    assert Traits.of(FOOF()).approximation is None and Traits.of(FOOF()).counts_retries
    kfac = Traits.of(KFAC(fisher="full"))
    assert kfac.fisher == "full" and kfac.approximation_of_refresh
    assert Traits.of(EKFAC()).needs_rows and not Traits.of(EKFAC(fisher="sampled")).needs_rows
    assert kfac.kind == "full" and kfac.vectors(10) == 10
    columns = Traits.of(KFLR(fisher_columns=3))
    assert (columns.fisher, columns.kind, columns.vectors(10)) == ("full", "3 columns", 3)
    natural = Traits.of(NaturalGradient())
    assert natural.draws_points and natural.own_points is None, "as many as a batch"
    assert Traits.of(NaturalGradient(fisher_data=7)).own_points == 7


def test_vectors_of_every_fisher():
    assert [vectors_of(fisher, 10) for fisher in ("none", "recursion", "empirical", "sampled", "full")] == [
        *(0, 0, 1, 1, 10)
    ]
