"""Reads `done`, which does not say whether the task ended or time was up."""

import numpy as np

from segue.data.options import Both


def split_done(
    done: np.ndarray, reward: np.ndarray, last: np.ndarray, both: Both | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Tell the ends of the task from cuts by time among rows marked done, from the rewards of demonstrations.

    Where every reward is one of two numbers, as 0 and 1, the higher one is success: a row that is done and has it is
    terminal, a row that is done and has the other one is cut. Elsewhere `done` is taken at its word, as an end of the
    task. `both`, the caller's word, goes before that.

    **Arguments:** `done`, `last`, bool [N]: marked done; the last row of its episode. `reward` [N].

    **Returns:** which rows are terminal, which are cut by time though marked done, both bool [N], and a note.
    """
    levels = np.unique(reward)
    if both in ("terminal", "timeout") or not done.any():
        chosen = both != "timeout"
        return done & chosen, done & (not chosen), ()
    if len(levels) == 2:
        success = reward == levels[1]
        cut = done & ~success
        note = (
            f"{np.count_nonzero(cut)} ends that are marked done, without the reward {levels[1]:g} of success, are "
            "taken for cuts by time (both='terminal' of segue.data.load takes them for ends of the task)"
        )
        return done & success, cut, (note,) if cut.any() else ()
    everywhere = ", and every episode has it" if done[last].all() else ""
    note = (
        f"done is taken for the end of the task, though a time limit may have set it{everywhere} (both='timeout' of "
        "segue.data.load takes it for cuts by time)"
    )
    return done, np.zeros_like(done), (note,)
