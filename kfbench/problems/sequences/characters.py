"""Text as a data set: characters are tokens, samples are windows that do not overlap, the last tenth is held out."""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfbench.config.problem_table import DATASETS, is_own_text
from kfbench.config.schema import Problem
from kfbench.errors import UsageError
from kfbench.problems.datasets import Dataset
from kfbench.problems.idx import opened
from kfbench.problems.locations import find_files
from kfbench.problems.own.dataset import DIGITS
from kfbench.results.records import BITS_COLUMNS

_MOST_BYTES = 2**28  # 250 times the text that is carried; as whole numbers eight times as many bytes
# Of each the model has an input and an output, and curvature a factor of as many squared numbers.
_MOST_CHARACTERS = 5000
# Of the vectors that are backpropagated for the Fisher of a (micro-)batch, in bytes.
_MOST_VECTORS = 2.5e8


def load_characters(problem: Problem, device: torch.device | str = "cpu") -> Dataset:
    """The text of ``problem``, ours or in the user's own file; UsageError, one sentence, for every fault.

    The vocabulary is every character that the text holds, test part included, in the order of their code points.
    Inputs [n, context] are characters t of window n, targets [n, context] the characters t + 1 of the same part.
    """
    context, path = problem.context, text_file(problem.dataset, problem.data_dir)
    assert context is not None, "the problem is spelled out"
    text = read_text(path)
    if problem.dataset_digest not in (None, found := _digest(text)):
        raise UsageError(f"{path} holds another text than was asked for: digest {found}, not {problem.dataset_digest}")
    vocabulary, tokens = _tokens(path, text)
    held_out = len(tokens) // 10
    parts = tokens[: len(tokens) - held_out], tokens[len(tokens) - held_out :]
    if len(parts[1]) <= context:
        needed = 10 * (context + 1)
        raise UsageError(
            f"{path} holds {len(tokens)} characters, too few for a window of context {context} in the tenth that is "
            f"held out: {needed} are enough; use a longer text or a smaller --context"
        )
    (x, y), (test_x, test_y) = (_windows(part.to(device), context) for part in parts)
    return Dataset(x, y, test_x, test_y, len(vocabulary), positions=context)


def text_file(name: str, data_dir: str | None) -> Path:
    """Where the text lies."""
    if not is_own_text(name):
        return find_files(name, data_dir)[0]
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"text {name!r} cannot be found: {error}") from error
    if not path.is_file():
        raise UsageError(f"text {name!r} is no file; accepted are {', '.join(_texts())}, or the path of a .txt file")
    return path


def _texts() -> list[str]:
    return [name for name, entry in DATASETS.items() if entry.text]


def digest(name: str) -> str:
    """Of what a text holds, whatever ends its lines; UsageError where it cannot be read."""
    return _digest(read_text(text_file(name, None)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def read_text(path: Path) -> str:
    """UTF-8, plain or gzipped, with line ends as \\n; UsageError for anything else."""
    with opened(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path} cannot be read: it holds more than {_MOST_BYTES} bytes of text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: byte {error.start} is 0x{content[error.start]:02x}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tokens(path: Path, text: str) -> tuple[str, Tensor]:
    """The vocabulary, and the text as places in it."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known, places = np.unique(codes, return_inverse=True)
    if not 2 <= len(known) <= _MOST_CHARACTERS:
        raise UsageError(f"{path} has {len(known)} different characters, accepted are 2 to {_MOST_CHARACTERS}")
    return "".join(map(chr, known)), torch.from_numpy(places.reshape(-1).astype(np.int64))


def _windows(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets; what is left at the end is dropped."""
    count = (len(tokens) - 1) // context
    return tokens[: count * context].view(count, context), tokens[1 : count * context + 1].view(count, context)


def check_vectors(opt: str, data: Dataset, vectors: Callable[[int], int], samples: int) -> None:
    """UsageError where what method ``opt`` backpropagates for its Fisher of so many samples fills the memory.

    ``vectors`` of so many outputs: of an exact Fisher one for every output at every position.
    """
    outputs = math.prod(data.output_shape)
    size = vectors(outputs) * samples * outputs * 4
    if data.positions and size > _MOST_VECTORS:
        raise UsageError(
            f"method {opt!r} backpropagates {vectors(outputs)} vectors, one for each of {data.outputs} characters at "
            f"{data.positions} positions, which take {size / 1e6:.0f} MB, above the {_MOST_VECTORS / 1e6:g} accepted: "
            "use a smaller --context or --micro-batch-size, fisher 'sampled', or kflr with fisher_columns"
        )


def bits_per_character(judged: Mapping[str, float | None], positions: int) -> dict[str, float | None]:
    """Of ``train_loss`` and ``test_loss``, in nats a sample, which are sums over its positions; nothing of images."""
    if not positions:
        return {}
    losses = [judged["train_loss"], judged["test_loss"]]
    bits = [None if loss is None else loss / (positions * math.log(2)) for loss in losses]
    return dict(zip(BITS_COLUMNS, bits, strict=True))
