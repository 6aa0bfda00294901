"""Makes the file beside it with robomimic's own `dataset_states_to_obs` (`pip install robomimic`), and its rows as
robomimic reads them.

    python tests/robomimic/make.py

The simulator is a point of five numbers instead of robosuite; extracting and writing are robomimic's. sparse.hdf5.gz
has five demonstrations of 4, 5, 2, 3 and 1 steps with rewards of success, written by `--done_mode 2`, and robomimic's
own lists under `mask`. The second one holds still for two steps after success, and the fourth one fails. sparse.npz has
every row as `SequenceDataset` gives it.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import robomimic
import robomimic.utils.env_utils as env_utils
import robomimic.utils.obs_utils as obs_utils
from robomimic.envs.env_base import EnvBase, EnvType
from robomimic.scripts.dataset_states_to_obs import dataset_states_to_obs
from robomimic.scripts.split_train_val import split_train_val_from_hdf5
from robomimic.utils.dataset import SequenceDataset

HERE = Path(__file__).parent
KEYS = ("robot0_eef_pos", "object")
SUCCESSES = ((0, 0, 0, 1), (0, 0, 1, 1, 1), (0, 1), (0, 0, 0), (1,))


class Point(EnvBase):
    """An env whose state is five numbers, of which the last one says whether the task is done."""

    version, rollout_exceptions, action_dimension, name, type = "1.0", (), 2, "Point", EnvType.GYM_TYPE
    state = np.zeros(5)

    def __init__(self, *args, **kwargs):
        pass

    @classmethod
    def create_for_data_processing(cls, *args, **kwargs):
        return cls()

    def reset(self):
        return self.reset_to({"states": np.zeros(5)})

    def reset_to(self, state):
        self.state = np.asarray(state["states"])
        return self.get_observation()

    def step(self, action):  # the last action of a demonstration ends where its success says
        self.state = np.concatenate([self.state[:4] + np.tile(action, 2), self.state[4:]])
        self.state[4] = max(self.state[4], self.final)
        return self.get_observation(), self.get_reward(), False, {}

    def get_observation(self):
        return {"robot0_eef_pos": self.state[:3].copy(), "object": 2 * self.state[2:4]}

    def get_reward(self):
        return float(self.state[4])

    def is_success(self):
        return {"task": bool(self.state[4])}

    def serialize(self):
        return {"env_name": self.name, "type": self.type, "env_version": self.version, "env_kwargs": {}}

    def get_state(self):
        return {"states": self.state}

    render = get_goal = set_goal = is_done = None


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps(Point().serialize())
            for k, success in enumerate(SUCCESSES):  # states[t] is before action t, and success is after it
                states = rng.normal(size=(len(success), 5))
                states[:, 4] = [0, *success[:-1]]
                data[f"demo_{k}/states"], data[f"demo_{k}/actions"] = states, rng.uniform(-1, 1, (len(success), 2))
        settings = {"dataset": f"{folder}/demo.hdf5", "output_name": "sparse.hdf5", "n": None, "shaped": False}
        settings |= {"camera_names": [], "camera_height": 84, "camera_width": 84, "done_mode": 2, "compress": False}
        settings |= {"copy_rewards": False, "copy_dones": False, "exclude_next_obs": False}
        ends = iter(success[-1] for success in SUCCESSES)
        begun = Point.reset

        def reset(self):
            Point.final = next(ends)
            return begun(self)

        with (
            mock.patch.object(env_utils, "get_env_class", return_value=Point),
            mock.patch.object(Point, "reset", reset),
        ):
            dataset_states_to_obs(argparse.Namespace(**settings))
        split_train_val_from_hdf5(f"{folder}/sparse.hdf5", val_ratio=0.4)
        (HERE / "sparse.hdf5.gz").write_bytes(gzip.compress(Path(folder, "sparse.hdf5").read_bytes(), mtime=0))
        rows = read_rows(f"{folder}/sparse.hdf5")
    np.savez_compressed(HERE / "sparse.npz", **rows)
    versions = {"robomimic": robomimic.__version__, "h5py": h5py.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


def read_rows(path):
    """Every row as `SequenceDataset` gives it, and the number of its demonstration."""
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS), "rgb": []}})
    columns = ("actions", "rewards", "dones")
    read = SequenceDataset(path, KEYS, columns, hdf5_use_swmr=False, hdf5_cache_mode=None)
    rows = [read[k] for k in range(len(read))]
    out = {name: np.stack([row[name][0] for row in rows]) for name in columns}
    for part in ("obs", "next_obs"):
        out[part] = np.stack([np.concatenate([row[part][key][0] for key in KEYS]) for row in rows])
    demo = np.array([int(read._index_to_demo_id[k].removeprefix("demo_")) for k in range(len(read))])
    return {"demo": demo, **out}


if __name__ == "__main__":
    main()
