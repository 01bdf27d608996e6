"""The update of an optimizer without a preconditioner: the verbs of ``Preconditioning``, and the gradient itself."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from kfbench.preconditioners.plain import PlainGradient
from kfbench.problems.likelihoods import Gaussian
from kfbench.problems.output_fisher import OutputFisher
from kfbench.updates.preconditioning import Scale, scale_gradients, squared_norm
from kfbench.updates.schedule import Always
from kfbench.updates.turn import Turn, Watch


class PlainUpdate:
    """Leaves the mean gradient in every ``.grad``; nothing is captured, observed or refreshed."""

    damping = T = S = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Never taken: it tells what an update costs and repeats after to whoever times or counts it.
        self.turn = Turn(PlainGradient(), 0.0, 1, 1, None, OutputFisher(Gaussian()), None)
        self.turn.reschedule(Always(observing=False, refreshing=False))

    def begin(self) -> None:
        """Before the forwards of an update: gradients of micro-batches add up."""
        self.model.zero_grad()

    def capture(self) -> AbstractContextManager[Any]:
        """The context for one training forward: nothing is captured."""
        return nullcontext()

    def take_in(self, losses: Tensor, output: Tensor, part: Tensor) -> None:
        """One micro-batch of an update whose mean loss ``part`` [] is a share of."""
        part.backward()

    def finish(self, scale: Scale) -> None:
        """The gradient is its own direction, to which a step rule's ``scale`` is applied."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        scale_gradients(self.model, scale(lambda: squared_norm(gradients)))

    def warm_up(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Nothing to fill."""

    @contextmanager
    def watch(self, around: Watch) -> Iterator[None]:
        """Nothing of its own to watch: forward and backward are the caller's."""
        yield

    def state_dict(self) -> None:
        """Nothing."""

    def load_state_dict(self, state: Any) -> None:
        """Nothing."""
