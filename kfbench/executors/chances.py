"""Second chances: a job that went wrong once begins anew, one whose place was lost goes on elsewhere."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from kfbench.executors.contract import Executor, Job, Outcome

# A job that brings its node down would be lost without end.
_MOST_LOSSES = 20


class Chances:
    """Starts jobs, and starts them once more where that may help; ``note`` gets a sentence about each."""

    def __init__(self, executor: Executor, note: Callable[[str], None]) -> None:
        self._executor, self._note = executor, note
        self._jobs: dict[str, Job] = {}
        self._failed: set[str] = set()
        self._losses: Counter[str] = Counter()

    def start(self, job: Job) -> None:
        """For the first time."""
        self._jobs[job.key] = job
        self._executor.submit(job)

    def again(self, outcome: Outcome, reason: str | None) -> bool:
        """Whether the job was started once more; ``reason`` is why it failed, or None where it did not."""
        job = self._jobs.pop(outcome.key)
        what = job.folder or job.key
        if outcome.kind == "lost" and self._losses[job.key] < _MOST_LOSSES:
            self._losses[job.key] += 1
            self._note(f"{what}: {outcome.value}; it goes on elsewhere")
            # From what has come home, also of a second attempt.
            self.start(replace(job, anew=False))
            return True
        # One that was late would be late again.
        if reason is None or outcome.kind in ("late", "lost") or job.key in self._failed:
            return False
        self._failed.add(job.key)
        self._note(f"{what}: {reason}; it is tried once more")
        self.start(replace(job, anew=True))
        return True
