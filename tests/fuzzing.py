"""What the fuzz tests share: how many examples, and what counts as a decent refusal."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from kfbench.errors import UsageError

# The same examples on every machine; the folder fixture may be shared by them.
fuzz = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def result_or_one_sentence(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or None if it refuses with UsageError in one line; all else is a failure."""
    try:
        return call()
    except UsageError as error:
        assert str(error), "a refusal without a sentence"
        assert len(str(error).splitlines()) == 1, f"more than one line: {str(error)!r}"
        assert len(str(error)) < 5000, "a sentence nobody reads"
        return None
