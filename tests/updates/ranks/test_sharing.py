"""Several processes are one: the same losses and weights to rounding, however a batch divides."""

import math
from contextlib import nullcontext

import pytest
import torch

from kfbench.updates.ranks.placed import Placed
from kfbench.updates.ranks.sharing import Several
from tests.updates.ranks.meeting import config_of, together, trained

# Batches of 20 and, at the end of an epoch of 82, one of 2: on three processes 7, 7, 6, and 1, 1, none.
UPDATES = 7
METHODS = {
    "sgd": {},
    "adam": {},
    "sgd:weight_decay=0.1,lr_schedule=cosine,clip_norm=0.01": {},
    "foof:T=2": {"lr": 0.3, "damping": 1.0},
    "foof:T=3,S=1,order=same,clip_norm=0.01": {"lr": 0.3, "damping": 1.0},
    "kfac:T=2": {"lr": 0.003, "damping": 0.01},
    "kfac:T=3,fisher=full,damping_kind=standard": {"lr": 0.003, "damping": 0.1},
    "kfac:T=2,fisher=empirical,order=same": {"lr": 0.003, "damping": 0.01},
    "kflr:T=2,fisher_columns=3": {"lr": 0.003, "damping": 0.01},
    "ekfac:T=2": {"lr": 0.001, "damping": 0.1},
    "ekfac:T=3,S=2,fisher=sampled,order=independent": {"lr": 0.001, "damping": 0.1},
    "ekfac-ra:T=2": {"lr": 0.001, "damping": 0.1},
    "foof-kfac-damping:T=2": {"lr": 0.003, "damping": 0.01},
    "foof-centred:T=2": {"lr": 0.3, "damping": 1.0},
    "shampoo:T=2": {"lr": 0.003, "damping": 0.1},
    "muon": {},
}
CONVOLUTIONS = {"model": "convnet", "width": 4, "train_samples": 42, "eval_samples": 40}
SEQUENCES = {"model": "transformer", "dataset": "shakespeare", "context": 6, "width": 8, "depth": 1, "heads": 2}
NUMBERS = {"dataset": "tests.updates.ranks.meeting:few_numbers"}
IMAGES = {"dataset": "tests.updates.ranks.meeting:few_images", "model": "convnet", "width": 4}
TOLERANCE = 1e-12


def assert_same(one, several, tolerance=TOLERANCE):
    losses, weights, _ = one
    for others, theirs, _ in several:
        error = float((theirs - weights).norm() / weights.norm())
        off = max(abs(a - b) / abs(b) for a, b in zip(others, losses, strict=True))
        assert error <= tolerance and off <= tolerance * 10, f"weights off by {error:.1e}, losses by {off:.1e}"
    # What all compute of the same sums is the same to the last bit: else they would drift apart.
    assert all(torch.equal(theirs, several[0][1]) for _, theirs, _ in several)


def assert_one_process(spec, size, placement="spread", **flags):
    config = config_of(spec, **METHODS.get(spec, {}), **flags)
    one = trained(config, UPDATES)
    assert all(map(math.isfinite, one[0]))
    assert_same(one, trained(config, UPDATES, size, placement=placement))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("spec", METHODS)
def test_several_processes_are_one(spec, size):
    assert_one_process(spec, size, **NUMBERS)


def test_soap_where_no_basis_is_free():
    """The factor of outputs has full rank; of inputs there are more than outputs, so that one is LAPACK's choice."""
    config = config_of("soap:T=2,sides=left", lr=0.003, damping=1e-8, **NUMBERS)
    # Its small second moments divide what rounding left.
    assert_same(trained(config, UPDATES), trained(config, UPDATES, 2), tolerance=1e-9)


def test_of_wide_layers_and_few_rows():
    """Whose gradients one process keeps as rows."""
    assert_one_process("kfac:T=2", 3)


@pytest.mark.parametrize("spec", ["foof:T=2", "kfac:T=2", "ekfac:T=2", "ekfac-ra:T=2"])
def test_wherever_refreshes_are_made(spec):
    assert_one_process(spec, 2, "replicated", **NUMBERS)


@pytest.mark.parametrize(
    "spec", ["sgd", "foof:T=2", "kfac:T=2", "ekfac:T=2", "ekfac:T=3,S=2,fisher=sampled,order=independent"]
)
@pytest.mark.parametrize("problem", [CONVOLUTIONS, SEQUENCES], ids=["convolutions", "sequences"])
def test_of_convolutions_and_of_sequences(spec, problem, tmp_path):
    if spec.startswith("ekfac"):  # of characters that are hardly seen there is no eigenvector of its own either
        letters = torch.randint(5, (6000,), generator=torch.Generator().manual_seed(0))
        (tmp_path / "letters.txt").write_text("".join("abcde"[i] for i in letters))
        problem = IMAGES if problem is CONVOLUTIONS else problem | {"dataset": str(tmp_path / "letters.txt")}
    assert_one_process(spec, 3, **problem)


@pytest.mark.parametrize("spec", ["kfac:T=2", "ekfac:T=2"])
def test_of_micro_batches(spec):
    """Each of which is divided, so that its labels are drawn as one process draws them: 20 is 7, 7 and 6."""
    assert_one_process(spec, 2, micro_batch_size=7, train_samples=80, **NUMBERS)


@pytest.mark.parametrize("estimate", ["spatial=sua", "input_groups=2", "sharing=reduce"])
def test_of_estimated_factors(estimate):
    problem = CONVOLUTIONS | {"lr": 0.003, "damping": 0.01}
    config = config_of(f"kfac:T=2,{estimate}", **problem)
    assert_same(trained(config, UPDATES), trained(config, UPDATES, 2))


def test_of_biases_and_of_outputs_that_are_no_classes():
    problem = {"model": "autoencoder-sigmoid", "width": 50, "dataset": "fashion-mnist-1k"}
    for spec in ("kfac:T=2", "foof:T=2"):
        config = config_of(spec, **METHODS[spec], **problem)
        assert_same(trained(config, 4), trained(config, 4, 3))


NORMALISED = CONVOLUTIONS | {"norm": "batch"}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("spec", ["sgd", "foof:T=2", "kfac:T=2", "kfac:T=3,fisher=full", "ekfac-ra:T=2", "shampoo:T=2"])
def test_batch_normalisation_is_that_of_the_whole_batch(spec, size):
    """On three processes the last batch, of 2, leaves one without rows; running averages are the same, too."""
    problem = NORMALISED | IMAGES if spec.startswith("ekfac") else NORMALISED  # as above
    config = config_of(spec, **METHODS.get(spec, {}), **problem)
    one, several = trained(config, UPDATES), trained(config, UPDATES, size)
    assert_same(one, several, 1e-11)
    kept = [one[2].model.state_dict(), *(trainee.model.state_dict() for _, _, trainee in several)]
    names = [name for name in kept[0] if "running" in name]
    assert names and all(torch.equal(kept[1][name], other[name]) for other in kept[2:] for name in names)
    for name in names:
        torch.testing.assert_close(kept[1][name], kept[0][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spec", ["foof:T=2", "kfac:T=2"])
def test_batch_normalisation_of_micro_batches(spec):
    """Each normalises by itself, on one process and on two."""
    config = config_of(spec, **METHODS[spec], **NORMALISED | {"train_samples": 40}, micro_batch_size=7)
    assert_same(trained(config, 5), trained(config, 5, 2), 1e-11)


class NormalisesItsPart(Several):
    """All that differs is what is exchanged within a forward and its backward pass."""

    def training_forward(self):
        return nullcontext()


def test_batch_normalisation_of_each_part_is_noticed():
    config = config_of("sgd", **NORMALISED)
    one, several = trained(config, UPDATES), trained(config, UPDATES, 2, make=NormalisesItsPart)
    assert one[0][0] != pytest.approx(several[0][0][0], rel=1e-6), "the first loss already is another"
    with pytest.raises(AssertionError, match="off by"):
        assert_same(one, several, 1e-6)


class Unweighted(Several):
    """Every process counts alike, however many rows it has."""

    def means(self, own):
        return self.sums([tensor / self.size for tensor in own])


class CountsItsFirstRow(Several):
    """A process without rows counts the one that it has for shapes."""

    def shares(self, parts):
        for x, y in super().shares(parts):
            self._own = max(1, self._own)
            yield x, y


class DrawsForItself(Several):
    """Labels of its own rows alone."""

    def place(self):
        return self._rows.stop - self._rows.start, slice(None)


class SameRows(Several):
    """All see what the first one sees."""

    def rows(self, samples):
        rows, count = super().rows(samples)
        return slice(0, rows.stop - rows.start), count


class KeepsItsRefresh(Several):
    """What others refresh never arrives."""

    def __init__(self, transport, local_rank, placement):
        super().__init__(transport, local_rank, placement)
        quiet = type("Quiet", (), {"hand_on": lambda self, flats: [f.zero_() for f in flats if f.isnan().any()]})()
        quiet.rank, quiet.size, quiet.largest = transport.rank, transport.size, transport.largest
        self.placement = Placed(quiet)


class ForgetsSums(Several):
    """Factors of its own rows alone."""

    def statistics(self, own, estimate):
        return own


@pytest.mark.parametrize(
    ("mistake", "spec", "size"),
    [
        (Unweighted, "foof:T=2", 3),
        (CountsItsFirstRow, "foof:T=2", 3),
        (DrawsForItself, "kfac:T=2", 2),
        (SameRows, "sgd", 2),
        (SameRows, "foof:T=2", 2),
        (KeepsItsRefresh, "kfac:T=2", 2),
        (ForgetsSums, "foof:T=2", 2),
    ],
)
def test_a_mistake_is_noticed(mistake, spec, size):
    config = config_of(spec, **METHODS[spec], **NUMBERS)
    one = trained(config, UPDATES)
    try:
        several = trained(config, UPDATES, size, make=mistake)
    except (FloatingPointError, torch.linalg.LinAlgError):
        return
    with pytest.raises(AssertionError):
        assert_same(one, several, 1e-9)


def test_evaluations_are_divided_and_alike():
    config = config_of("sgd")
    wanted = trained(config, 1)[2].evaluate()
    several = trained(config, 1, 3)
    found = together(3, lambda transport: _evaluated(several[transport.rank][2], transport))
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx(wanted, rel=1e-12)


def _evaluated(trainee, transport):
    trainee.ranks = Several(transport, 0)
    return trainee.evaluate()


def test_a_state_is_that_of_one_process():
    """Whatever their number, the first one's state is the whole: one process goes on from it, and back."""
    config = config_of("kfac:T=2", **METHODS["kfac:T=2"], **NUMBERS)
    _, _, alone = trained(config, 3)
    mine, theirs = alone.state_dict(), trained(config, 3, 2)[0][2].state_dict()
    assert _shapes(mine) == _shapes(theirs)
    alone.load_state_dict(theirs)
    batches = alone.batches()
    losses = [float(alone.update(*next(batches))) for _ in range(UPDATES - 3)]
    assert losses == pytest.approx(trained(config, UPDATES)[0][3:], rel=1e-11)


def _shapes(state):
    if isinstance(state, torch.Tensor):
        return tuple(state.shape)
    if isinstance(state, dict):
        return {key: _shapes(value) for key, value in state.items()}
    return [_shapes(value) for value in state] if isinstance(state, list | tuple) else type(state)
