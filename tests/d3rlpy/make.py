"""Makes the files beside it, with d3rlpy 2 (`pip install d3rlpy`): a replay buffer, and its transitions as d3rlpy says.

    python tests/d3rlpy/make.py

buffer.h5 has four episodes of 5, 4, 1 and 3 steps, of which the first and the third terminate. transitions.npz holds
every transition that d3rlpy's own picker takes from them.
"""

from pathlib import Path

import d3rlpy
import numpy as np
from d3rlpy.dataset import BasicTransitionPicker, Episode, InfiniteBuffer, ReplayBuffer

HERE = Path(__file__).parent
rng = np.random.default_rng(0)
episodes = [
    Episode(
        rng.normal(size=(steps, 3)).astype(np.float32),
        rng.uniform(-2, 2, (steps, 2)).astype(np.float32),
        rng.normal(size=(steps, 1)).astype(np.float32),
        terminated,
    )
    for steps, terminated in ((5, True), (4, False), (1, True), (3, False))
]
buffer = ReplayBuffer(InfiniteBuffer(), episodes=episodes)
with (HERE / "buffer.h5").open("w+b") as file:
    buffer.dump(file)
pick = BasicTransitionPicker()
taken = [pick(episode, i) for episode in episodes for i in range(episode.transition_count)]
names = ("observation", "action", "reward", "next_observation", "terminal")
columns = {name: np.stack([np.asarray(getattr(each, name), np.float32) for each in taken]) for name in names}
np.savez(HERE / "transitions.npz", **columns)
print(d3rlpy.__version__, {name: column.shape for name, column in columns.items()})
