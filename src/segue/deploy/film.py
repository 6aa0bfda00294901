"""Film a policy's episodes: the env renders the pictures, and ffmpeg packs them into an MP4."""

import contextlib
import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segue import predict
from segue.deploy import export, stored_policy
from segue.envs.faults import check_observation, describe_error
from segue.envs.lockstep import EVALUATE, episode_seed
from segue.envs.make import spec_of
from segue.envs.rollouts import LONGEST
from segue.errors import SegueError
from segue.policies import importers, policy_file
from segue.runs import config
from segue.system import disk, untrusted

START_SEED = 1_000
"""Seed of the episodes' first states: the one of `segue evaluate` for policy 0."""


def film(
    path: str | Path,
    out: str | Path,
    episodes: int = 1,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
) -> tuple[str, list[tuple[float, int]]]:
    """Film the deterministic policy of a run or of a file, and write the MP4 `out`.

    Args:
        path: a run, whose policy for export acts, or a file that `importers.read` knows.
        out: a new file, .mp4.
        episodes: the number of episodes, one after another; they start as those of `segue evaluate` for policy 0.
        env_id: the environment. None: the one that the run, or a policy file of Segue's own, names.
        env_args, reset_options: values by name instead of those that the run or the file has, whose texts must be plain
            words.

    Returns:
        Which policy acted in which environment; each episode's return and length in env steps.

    Raises:
        SegueError: if the env renders nothing or fails, or a package is missing. Nothing is written then.
    """
    path, out = Path(path), export.vacant(Path(out), ".mp4")
    try:
        import imageio_ffmpeg
    except ImportError:
        raise SegueError("A film needs ffmpeg's package: pip install 'segue[film]'.") from None
    if path.is_dir():
        stored = stored_policy.find_policy(path)
        file, name, source = stored.path, str(stored), path / "config.json"
        metadata = stored.record.config if stored.record else {}
    else:
        file, name, source, metadata = path, str(path), path, _metadata(path)
    if env_id is None and "env_id" not in metadata:
        raise SegueError(f"{path} does not say which env it is for: pass --env-id.")
    task = config.env_of(metadata, source, env_id, env_args, reset_options)
    offscreen()
    try:
        env = task.make(render_mode="rgb_array")
    except SegueError as error:  # importing MuJoCo fails where it cannot draw in the way that MUJOCO_GL names
        raise SegueError(f"{error} ({_mujoco_gl()})") from error
    try:
        _follow_robot(env)
        spec = spec_of(env).chunked(_chunk(file))
        policy = policy_file.to_exported(importers.read(file, spec)[0], spec)
        results: list[tuple[float, int]] = []
        pictures = _pictures(env, spec, policy, episodes, results)
        first = next(pictures)
        with tempfile.TemporaryDirectory() as folder:
            reel = Path(folder) / "film.mp4"
            fps = env.metadata.get("render_fps") or 30
            _pack(imageio_ffmpeg.get_ffmpeg_exe(), itertools.chain([first], pictures), first.shape, fps, reel)
            out.parent.mkdir(parents=True, exist_ok=True)
            disk.write_bytes(out, reel.read_bytes())
    finally:
        with contextlib.suppress(Exception):  # the film does not depend on the env any more
            env.close()
    return f"{name} in {task.env_id}", results


def _metadata(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a policy file of Segue's, exported or not; of other files none."""
    if predict.is_exported(path):
        return policy_file.load_exported(path).about["about"]
    return policy_file.load_with_metadata(path)[2] if path.is_file() and importers.is_policy_file(path) else {}


def _chunk(path: Path) -> int:
    """Return the env steps that an action of the policy in a file covers."""
    if predict.is_exported(path):
        return policy_file.load_exported(path).chunk
    return policy_file.load(path)[1].chunk if importers.is_policy_file(path) else 1


def offscreen() -> None:
    """Set MUJOCO_GL, if it is not set, to a library of this machine that renders without a screen."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    for name, library in (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so.8"), ("osmesa", "libOSMesa.so")):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
            os.environ["MUJOCO_GL"] = name
            return


def _follow_robot(env: Any) -> None:
    """Let MuJoCo's camera "track" follow the robot, if the model has that camera.

    The camera of Gymnasium 1.4 stands still, so that a walking robot leaves the picture.
    """
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None and renderer.camera_id == -1:
        import mujoco

        kind = mujoco.mjtObj.mjOBJ_CAMERA  # pyright: ignore[reportAttributeAccessIssue]
        find = mujoco.mj_name2id  # pyright: ignore[reportAttributeAccessIssue]
        renderer.camera_id = find(renderer.model, kind, "track")  # -1 where there is none


def _mujoco_gl() -> str:
    return f"MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}; egl, osmesa or glfw may work"


def _pictures(env: Any, spec: Any, policy: Any, episodes: int, results: list[tuple[float, int]]) -> Iterator[Any]:
    """Yield every picture of some episodes, and append each episode's return and length to `results`."""
    for episode in range(episodes):
        try:
            obs = check_observation(env.reset(seed=episode_seed(START_SEED, EVALUATE, episode))[0], spec)
            total, length, over, actions = 0.0, 0, False, iter(())
        except Exception as error:
            raise SegueError(f"The env could not be reset: {untrusted.shown(describe_error(error))}.") from error
        yield _picture(env)
        while not over:
            try:
                if length % policy.chunk == 0:
                    actions = iter(policy(obs).reshape(policy.chunk, -1))
                next_obs, reward, terminated, truncated, _ = env.step(next(actions))
                obs = check_observation(next_obs, spec, reward)
            except Exception as error:
                raise SegueError(
                    f"The env failed at step {length} of episode {episode}: {untrusted.shown(describe_error(error))}."
                ) from error
            total, length, over = total + float(reward), length + 1, terminated or truncated
            if length >= LONGEST:
                raise SegueError(
                    f"Episode {episode} did not end within {LONGEST:,} steps: wrap the env in a TimeLimit."
                )
            yield _picture(env)
        results.append((total, length))


def _picture(env: Any) -> np.ndarray:
    """Return the env's picture, uint8 [height, width, 3]. Both sides are even, as the film's format requires."""
    try:
        rendered = env.render()
    except Exception as error:
        raise SegueError(
            f"The env cannot draw itself here ({untrusted.shown(describe_error(error))}; {_mujoco_gl()})."
        ) from error
    picture = np.asarray(rendered)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape) < 2:
        raise SegueError("The env shows no picture: it has no render mode 'rgb_array'.")
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])


def _pack(ffmpeg: str, pictures: Iterable[np.ndarray], shape: tuple[int, ...], fps: float, reel: Path) -> None:
    """Pack pictures of one shape into an MP4 that every player supports (H.264, yuv420p)."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{shape[1]}x{shape[0]}", "-r", f"{fps}", "-i", "-"]
    command = [ffmpeg, "-loglevel", "error", *raw, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(reel)]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log) as process:
            assert process.stdin is not None
            try:
                for picture in pictures:
                    if picture.shape != shape:
                        raise SegueError(f"The env's pictures change from {shape} to {picture.shape}.")
                    process.stdin.write(picture.data)
                process.stdin.close()
            except BrokenPipeError:
                pass  # ffmpeg ended by itself; its log says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            why = untrusted.shown(log.read().decode(errors="replace"))[:300]
            raise SegueError(f"ffmpeg could not pack the film: {why or process.returncode}.")
