"""What 1M rows of walker2d add to a process: peak resident memory while they are loaded, over their own size."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS, OBS, ACT = 1_000_000, 17, 6


def resident() -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path: str) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    obs = rng.standard_normal((ROWS + 1, OBS), np.float32)
    following, ends = obs[1:].copy(), np.arange(1, ROWS + 1) % 1000 == 0
    following[ends] += 1.0  # the true last observation, not the next episode's first
    np.savez(
        path, observations=obs[:-1], next_observations=following, actions=rng.uniform(-1, 1, (ROWS, ACT)).astype("f"),
        rewards=rng.standard_normal(ROWS, np.float32), terminals=np.zeros(ROWS, bool),
        timeouts=ends,
    )  # fmt: skip


def load(path: str) -> None:
    import jax

    from segue.core import Spec
    from segue.data import device
    from segue.data.loading import load
    from segue.envs.reward import Reward

    spec = Spec(OBS, ACT, (-1.0,) * ACT, (1.0,) * ACT)
    jax.block_until_ready(jax.numpy.zeros(()) + spec.normalise(jax.numpy.zeros(ACT)))  # what any process pays
    before = resident()
    data = load(path, low=spec.low, high=spec.high)
    rows = device.rows_for(data, spec, Reward())
    del data
    jax.block_until_ready(rows)
    size = sum(leaf.nbytes for leaf in rows) / 2**20
    print(json.dumps({"rows_mib": round(size, 1), "added_mib": round(resident() - before, 1),
                      "ratio": round((resident() - before) / size, 3)}))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 2:
        load(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "rows.npz")
            subprocess.run([sys.executable, "-c", f"import memory; memory.write({path!r})"], check=True,
                           cwd=Path(__file__).parent)  # fmt: skip
            subprocess.run([sys.executable, __file__, path], check=True)
