"""A policy's episodes as a film: the env draws itself, ffmpeg packs the pictures into an MP4."""

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
from segue.deploy import export, find
from segue.envs.faults import check_observation, describe_error
from segue.envs.lockstep import EVALUATE, episode_seed
from segue.envs.make import make_env, spec_of
from segue.envs.rollouts import LONGEST
from segue.errors import SegueError
from segue.policies import importers, policy_file
from segue.runs import config
from segue.system import disk

STARTS = 1_000
"""Numbers the episodes' starts: those of `segue evaluate` for policy 0."""


def film(
    path: str | Path, out: str | Path, episodes: int = 1, env_id: str | None = None
) -> tuple[str, list[tuple[float, int]]]:
    """Film a policy that performs, and write the MP4 `out`.

    Args:
        path: a run, whose best policy acts, or a file that `foreign.read` knows.
        out: a new file, .mp4.
        episodes: how many, one after another; the starts are those of `segue evaluate`'s policy 0.
        env_id: None: the one that the run, or a policy of Segue's own, names.

    Returns:
        Who acted where; each episode's return and length.

    Raises:
        SegueError: where the env draws nothing, fails, or a package is missing; nothing is written then.
    """
    path, out = Path(path), export.vacant(Path(out), ".mp4")
    try:
        import imageio_ffmpeg
    except ImportError:
        raise SegueError("A film needs ffmpeg's package: pip install 'segue[film]'.") from None
    if path.is_dir():
        found = find.find(path)
        file, who, told, where = (
            found.path,
            str(found),
            found.record.config if found.record else {},
            path / "config.json",
        )
    else:
        file, who, where, told = path, str(path), path, _says(path)
    if env_id is None and "env_id" not in told:
        raise SegueError(f"{path} does not say which env it is for: pass --env-id.")
    env_id = config.plain_env(told, where) if env_id is None else env_id
    offscreen()
    try:
        env = make_env(env_id, render_mode="rgb_array")
    except SegueError as error:  # importing MuJoCo fails where it cannot draw as it is told
        raise SegueError(f"{error} ({_how()})") from error
    try:
        _follow(env)
        spec = spec_of(env)
        perform = policy_file.plain(importers.read(file, spec)[0], spec)
        results: list[tuple[float, int]] = []
        pictures = _pictures(env, spec, perform, episodes, results)
        first = next(pictures)
        with tempfile.TemporaryDirectory() as folder:
            reel = Path(folder) / "film.mp4"
            fps = env.metadata.get("render_fps") or 30
            _pack(imageio_ffmpeg.get_ffmpeg_exe(), itertools.chain([first], pictures), first.shape, fps, reel)
            disk.write_bytes(out, reel.read_bytes())
    finally:
        with contextlib.suppress(Exception):  # nothing depends on it any more
            env.close()
    return f"{who} in {env_id}", results


def _says(path: Path) -> Mapping[str, Any]:
    """What a policy of Segue's, sealed or exported, says of itself; of other files nothing."""
    if predict.exported(path):
        return policy_file.load_plain(path).about["about"]
    return policy_file.load_with_metadata(path)[2] if path.is_file() and importers.sealed(path) else {}


def offscreen() -> None:
    """Let MuJoCo draw without a screen, by what this machine has, where nobody has said how."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    for name, library in (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so.8"), ("osmesa", "libOSMesa.so")):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
            os.environ["MUJOCO_GL"] = name
            return


def _follow(env: Any) -> None:
    """Let MuJoCo's camera "track", where the model has one, follow the robot: Gymnasium 1.4's own stands still, so
    that what walks leaves the picture."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None and renderer.camera_id == -1:
        import mujoco

        kind = mujoco.mjtObj.mjOBJ_CAMERA  # pyright: ignore[reportAttributeAccessIssue]
        find = mujoco.mj_name2id  # pyright: ignore[reportAttributeAccessIssue]
        renderer.camera_id = find(renderer.model, kind, "track")  # -1 where there is none


def _how() -> str:
    return f"MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}; egl, osmesa or glfw may work"


def _pictures(env: Any, spec: Any, perform: Any, episodes: int, results: list[tuple[float, int]]) -> Iterator[Any]:
    """Every picture of some episodes, whose returns and lengths go to `results`."""
    for episode in range(episodes):
        try:
            obs = check_observation(env.reset(seed=episode_seed(STARTS, EVALUATE, episode))[0], spec)
            total, length, over = 0.0, 0, False
        except Exception as error:
            raise SegueError(f"The env could not be reset: {_line(describe_error(error))}.") from error
        yield _picture(env)
        while not over:
            try:
                seen, reward, terminated, truncated, _ = env.step(perform(obs))
                obs = check_observation(seen, spec, reward)
            except Exception as error:
                raise SegueError(
                    f"The env failed at step {length} of episode {episode}: {_line(describe_error(error))}."
                ) from error
            total, length, over = total + float(reward), length + 1, terminated or truncated
            if length >= LONGEST:
                raise SegueError(
                    f"Episode {episode} did not end within {LONGEST:,} steps: wrap the env in a TimeLimit."
                )
            yield _picture(env)
        results.append((total, length))


def _picture(env: Any) -> np.ndarray:
    """What the env shows, uint8 [height, width, 3], with even sides, as the film's format has them."""
    try:
        shown = env.render()
    except Exception as error:
        raise SegueError(f"The env cannot draw itself here ({_line(describe_error(error))}; {_how()}).") from error
    picture = np.asarray(shown)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape) < 2:
        raise SegueError("The env shows no picture: it has no render mode 'rgb_array'.")
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])


def _line(text: str) -> str:
    return " ".join(text.split())


def _pack(ffmpeg: str, pictures: Iterable[np.ndarray], shape: tuple[int, ...], fps: float, reel: Path) -> None:
    """Pictures of one shape to an MP4 that every player knows (H.264, yuv420p)."""
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
                pass  # it ended by itself, and says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            why = _line(log.read().decode(errors="replace"))[:300]
            raise SegueError(f"ffmpeg could not pack the film: {why or process.returncode}.")
