"""Makes the folder beside it that LeRobot writes, and its rows as LeRobot reads them.

    python tests/lerobot/make.py       with lerobot 0.3.3 (version 2.1 of the format), and with 0.4.4 (version 3.0)

It needs PyTorch, datasets and PyArrow of lerobot's dependencies; torchvision, which images alone need, is replaced by
an empty module. The set has four episodes of 5, 4, 1 and 3 frames, of which the first and the third end with success.
NAME.zip holds the folder, and NAME.npz every frame as `LeRobotDataset` gives it.
"""

import json
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from unittest import mock

import datasets  # noqa: F401  (which asks for torchvision before it is replaced)
import numpy as np

for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
    sys.modules[name] = types.ModuleType(name)
v2 = sys.modules["torchvision.transforms.v2"]
v2.Transform, v2.functional = type("Transform", (), {}), mock.MagicMock()
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
sys.modules["torchvision.transforms"].v2 = v2
sys.modules["torchvision.transforms"].ToTensor = mock.MagicMock()

from lerobot.datasets import lerobot_dataset  # noqa: E402

HERE = Path(__file__).parent
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
    "observation.environment_state": {"dtype": "float32", "shape": (2,), "names": None},
    "action": {"dtype": "float32", "shape": (2,), "names": ["left", "right"]},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}
EPISODES = ((5, True), (4, False), (1, True), (3, False))


def main() -> None:
    version, rng = lerobot_dataset.CODEBASE_VERSION, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "set")
        made = lerobot_dataset.LeRobotDataset.create(
            "segue/tests", fps=10, features=FEATURES, root=root, use_videos=False
        )
        for steps, success in EPISODES:
            for k in range(steps):
                frame = {
                    "observation.state": rng.normal(size=3).astype(np.float32),
                    "observation.environment_state": rng.normal(size=2).astype(np.float32),
                    "action": rng.uniform(-1, 1, 2).astype(np.float32),
                    "next.reward": np.array([float(success and k == steps - 1)], np.float32),
                    "next.done": np.array([k == steps - 1]),
                    "next.success": np.array([success and k == steps - 1]),
                }
                made.add_frame(frame, "push") if version < "v3" else made.add_frame({**frame, "task": "push"})
            made.save_episode()
        if hasattr(made, "finalize"):
            made.finalize()
        read = lerobot_dataset.LeRobotDataset("segue/tests", root=root)
        frames = [read[k] for k in range(len(read))]
        names = [*FEATURES, "episode_index", "frame_index"]
        columns = {name: np.stack([np.asarray(frame[name]) for frame in frames]) for name in names}
        np.savez_compressed(HERE / f"{version}.npz", **columns)
        with zipfile.ZipFile(HERE / f"{version}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                file.write(path, path.relative_to(root))
    versions = json.loads((HERE / "versions.json").read_text()) if (HERE / "versions.json").exists() else {}
    versions[f"lerobot ({version})"] = sys.argv[1]
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
