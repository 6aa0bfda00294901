"""Records which trials of a sweep are done, running, waiting, failed or skipped."""

from collections.abc import Sequence

from segue.sweeps.plan import Trial


class Progress:
    """The state of a sweep. Every trial is done, waiting, running, failed or skipped."""

    def __init__(self, trials: Sequence[Trial], done: set[str]):
        self.total = len(trials)
        self.done = {trial.folder: None for trial in trials if trial.folder in done}
        self.waiting = {trial.folder: trial for trial in trials if trial.folder not in done}
        self.running: dict[str, Trial] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.tries: dict[str, int] = {}

    def next(self) -> Trial | None:
        """Move the first trial whose needs are met to the running ones, and return it; None where there is none."""
        for folder, trial in self.waiting.items():
            if all(need in self.done for need in trial.needs):
                self.running[folder] = self.waiting.pop(folder)
                return trial
        return None

    def end(self, folder: str, why: str | None = None) -> None:
        """Record that a trial has finished or, with a reason, failed. Trials that need a failed one are skipped."""
        del self.running[folder]
        if why is None:
            self.done[folder] = None
            return
        self.failed[folder] = why
        lost = {folder}
        while dependent := [each for each, trial in self.waiting.items() if lost.intersection(trial.needs)]:
            for each in dependent:
                need = next(need for need in self.waiting.pop(each).needs if need in lost)
                self.skipped[each] = f"it needs {need}, which {'failed' if need in self.failed else 'was skipped'}"
                lost.add(each)

    def again(self, folder: str) -> int:
        """Put a trial that was killed back, first in line. Returns how often this trial was put back so far."""
        self.waiting = {folder: self.running.pop(folder), **self.waiting}
        self.tries[folder] = self.tries.get(folder, 0) + 1
        return self.tries[folder]
