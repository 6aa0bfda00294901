"""`make faults`: what the promise "nothing is lost" says, tried on real processes. Takes its time.

python benchmarks/faults.py kills --count 50     SIGKILL at random moments, resumed, compared bit for bit; --guarded:
                                                 behind a gate, with its decisions and the deployed policy
python benchmarks/faults.py stalls               how long a commit holds up the loop beside 1,000,000 online rows
python benchmarks/faults.py soak                 memory, threads, files and compilations over many env steps
"""

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SEGUE = [sys.executable, "-m", "segue.cli"]
SMALL = ["--offline.steps", "2000", "--collect.until", "600", "--pretrain.steps", "1000", "--finetune.until", "1500"]
SMALL += [
    f"--{part}.width=32"
    for part in ("offline.networks", "pretrain.backbone.networks", "finetune.backbone.networks", "finetune.sampler")
]
SMALL += ["--episodes", "2", "--evaluate-steps", "500", "--evaluate-updates", "1000", "--log-every", "300"]
SMALL += ["--commit-every", "50", "--seeds", "2", "--quiet"]
GUARDED = ["--guard", "--finetune.gate.rest", "100", "--finetune.gate.min-episodes", "1", "--finetune.until", "6000"]


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of whatever a run computed."""
    files = [path for path in folder.rglob("*.safetensors") if "commits" not in path.parts]
    files += [folder / f"{name}.jsonl" for name in ("metrics", "returns", "failures", "episodes")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def survivors(group: int) -> list[str]:
    """Processes of a group (each run has its own) that are still there after 5 s."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        stats = (path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
        left = [stat for stat in stats if stat.rpartition(") ")[2].split()[2] == str(group)]
        if not left:
            return []
        time.sleep(0.1)
    return left


def kills(root: Path, count: int, seed: int, guarded: bool) -> None:
    data = str(root / "pendulum.npz")
    subprocess.run([*SEGUE, "data", "collect", "--env-id", "Pendulum-v1", "--steps", "3000", "--out", data], check=True)
    begin = [*SEGUE, "run", "opt", "--env-id", "Pendulum-v1", "--dataset", data, *SMALL, *(GUARDED if guarded else [])]
    for name in ("warm", "whole"):
        began = time.monotonic()
        subprocess.run([*begin, "--out", str(root / name)], check=True, stdout=subprocess.DEVNULL)
        lasts = time.monotonic() - began
    expected, rng, killed, saving, trial = sums(root / "whole"), random.Random(seed), 0, 0, 0
    phases: dict[str, int] = {}
    while killed < count:
        trial += 1
        folder, command = root / f"trial{trial}", [*begin, "--out", str(root / f"trial{trial}")]
        while True:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
            end = time.monotonic() + rng.uniform(0.2, 0.8) * lasts
            in_a_save = killed % 3 == 0  # wait for one, and strike inside it
            while process.poll() is None and (
                time.monotonic() < end or (in_a_save and not list((folder / "commits").glob(".*")))
            ):
                time.sleep(0.0005 if time.monotonic() >= end else 0.02)
            if process.poll() is None:
                saving += bool(list((folder / "commits").glob(".*")))
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                logs = folder / "metrics.jsonl"
                phase = logs.read_text().rpartition('"phase": "')[2].split('"')[0] if logs.exists() else ""
                phases[phase or "before the first line"] = phases.get(phase or "before the first line", 0) + 1
            process.wait()
            if left := survivors(process.pid):
                raise SystemExit(f"{left} outlived {folder} by 5 s")
            ended = (folder / "status.json").exists() and "finished" in (folder / "status.json").read_text()
            if process.returncode == 0 or ended:  # it may be killed after its last line
                break
            if process.returncode != -signal.SIGKILL:
                raise SystemExit(f"{folder} ended with {process.returncode} and not by a kill")
            if (folder / "commits").exists():
                command = [*SEGUE, "resume", str(folder), "--quiet"]
            else:  # killed before anything was learned
                subprocess.run(["rm", "-rf", str(folder)], check=True)
        if (found := sums(folder)) != expected:
            raise SystemExit(f"{folder} differs in {[k for k in expected if found.get(k) != expected[k]]}")
        print(
            f"{killed} kills, {saving} of them inside a save, {trial} runs, all as the whole one, no process left",
            flush=True,
        )
    print(f"by the phase of the last line logged: {phases}")
    if saving < 0.3 * count or not {"offline", "pretrain", "finetune"} <= phases.keys():
        raise SystemExit("too few kills inside a save, or a phase without one: run it again with another --seed")


def commit_times(rows: int, new: int) -> None:
    """The longest stall of the loop by commits of `new` new rows each, beside a ring of `rows`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from segue.core import Linear, Pretrained, Spec, TrainState, Transition
    from segue.methods.opt import OPT
    from segue.methods.td3 import TD3
    from segue.replay.balanced import Balanced
    from segue.runs.commits import Commit
    from segue.runs.journal import Journal
    from segue.system.signals import Stop
    from segue.training import start
    from segue.training.phases import Online

    rng, spec, backbone = np.random.default_rng(0), Spec(17, 6, (-1.0,) * 6, (1.0,) * 6), TD3()
    some = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
    offline = Transition(some(rows, 17), some(rows, 6), some(rows), some(rows, 17), jnp.zeros(rows, bool))
    phase = Online(OPT(backbone, Linear(0.0, 1.0, 10)), rows, Balanced())
    run = start.start(spec, offline, {"finetune": phase})
    critic = lambda key: TrainState.new(backbone.new_critic(spec, key=key))
    actor = lambda key: TrainState.new(backbone.new_actor(spec, key=key))
    pretrained = lambda key: Pretrained(actor(key), critic(key), {"q_on": critic(key)})
    run.__dict__["pretrained"] = jax.vmap(pretrained)(run.keys)
    phase_state = phase.begin(run)
    with tempfile.TemporaryDirectory() as name:
        journal, stalls, saves = Journal(Path(name)), [], []
        commit = Commit(Path(name), journal, {}, Stop(), new)
        for k in range(1, 9):
            ring = phase_state.run.online._replace(written=jnp.asarray(rows - 8 * new + k * new, jnp.int32))
            commit.rows = rows - 9 * new + k * new
            phase_state.run.__dict__["online"] = ring
            phase_state = jax.block_until_ready(phase_state._replace(env_step=k * new))
            began = time.perf_counter()
            commit._take_snapshot("finetune", phase_state, True)
            commit._commit()
            stalls.append(time.perf_counter() - began)
            commit.wait()
            saves.append(time.perf_counter() - began)
        commit.close()
        journal.close()
    print(f"a commit of {new:,} new rows beside {rows:,}: stalls of {1e3 * np.median(stalls):.0f} ms (median) and "
          f"{1e3 * max(stalls):.0f} ms (longest), on the disk after {1e3 * np.median(saves):.0f} ms")  # fmt: skip


def soak(steps: int) -> None:
    """A tiny net fine-tuned for `steps` env steps: what grows?"""
    import jax

    from segue.envs.lockstep import LockstepEnvs
    from segue.envs.make import make_env, read_spec
    from segue.methods.td3 import TD3
    from segue.nn.networks import Networks
    from segue.training import engine, start
    from segue.training.phases import Online

    def now() -> tuple[int, int, int, int]:
        status = Path("/proc/self/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return resident, len(os.listdir("/proc/self/fd")), threading.active_count(), engine.learn._cache_size()

    make = lambda: make_env("Pendulum-v1")
    spec, phase = read_spec(make), Online(TD3(networks=Networks(width=8)), steps)
    envs = LockstepEnvs(make, spec, [0])
    phase_state = phase.begin(start.start(spec, None, {"online": phase}))
    for step in range(steps):
        action = phase.act(phase_state, envs.obs, envs.episode_steps)
        phase_state = phase.observe(phase.learn(phase_state, 0), envs.step(action))
        if step == steps // 10:
            first = now()
    jax.block_until_ready(phase_state.learner)
    last = now()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{steps:,} env steps, from the first tenth on: memory {100 * (last[0] / first[0] - 1):+.1f} %, "
          f"file descriptors {first[1]} to {last[1]}, threads {first[2]} to {last[2]}, "
          f"programs {first[3]} to {last[3]}; peak {peak} MB")  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes set to extremes, pieces cut out, doubled or put in."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        here, there = sorted((rng.randrange(len(found) + 1), rng.randrange(len(found) + 1)))
        there = min(there, here + 64)
        way = rng.randrange(6)
        if way == 0 and here < len(found):
            found[here] ^= 1 << rng.randrange(8)
        elif way == 1:
            found[here:there] = rng.choice([b"\x00", b"\xff", b"\x7f", b"9"]) * (there - here)
        elif way == 2:
            del found[here:there]
        elif way == 3:
            found[here:here] = found[here:there]
        elif way == 4:
            found[here:here] = rng.randbytes(rng.randrange(1, 16))
        elif len(found) > 1:
            del found[rng.randrange(1, len(found)) :]
    return bytes(found)


def fuzz(root: Path, count: int, seed: int) -> None:
    import faulthandler

    import h5py
    import numpy as np

    from segue.data.loading import load
    from segue.errors import SegueError
    from segue.policies import policy_file
    from segue.results import read as read_
    from segue.runs import restore
    from segue.system import disk

    faulthandler.enable()
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    npz, folder = root / "p.npz", root / "run"
    subprocess.run([*SEGUE, "data", "collect", "--env-id", "Pendulum-v1", "--steps", "300", "--out", str(npz)], **quiet)
    given = [
        "--env-id",
        "Pendulum-v1",
        "--dataset",
        str(npz),
        "--offline.steps",
        "300",
        "--offline.networks.width",
        "8",
    ]
    subprocess.run([*SEGUE, "run", "td3bc", *given, "--episodes", "1", "--quiet", "--out", str(folder)], **quiet)
    with np.load(npz) as file, h5py.File(root / "p.hdf5", "w") as made:
        for name in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts"):
            if name in file:
                made[name] = file[name]
    newest = folder / "commits" / f"{max(restore.numbers(folder)):06}"
    formats = {
        "npz": (npz, lambda: load(npz)),
        "hdf5": (root / "p.hdf5", lambda: load(root / "p.hdf5")),
        "policy": (folder / "policy-0.safetensors", lambda: policy_file.load(folder / "policy-0")),
        "config": (folder / "config.json", lambda: read_.read(folder)),
        "returns": (folder / "returns.jsonl", lambda: read_.read(folder)),
        "commit manifest": (newest / "manifest.json", lambda: restore.newest(folder)),
        "commit state": (
            newest / "state.safetensors",
            lambda: disk.arrays((newest / "state.safetensors").read_bytes(), "state"),
        ),
    }
    for name, (path, read) in formats.items():
        content, rng, refused = path.read_bytes(), random.Random(f"{name} {seed}"), 0
        read()
        for _ in range(count):
            path.write_bytes(mutated(content, rng))
            try:
                read()
            except SegueError:
                refused += 1
            except BaseException:
                print(f"{name}: {path} holds what was read when this came:", flush=True)
                (Path.cwd() / f"fuzz-{path.name}").write_bytes(path.read_bytes())
                raise
        path.write_bytes(content)
        print(f"{name}: {count} mutated files, {refused} refused, no other exception", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "stalls", "soak", "fuzz"])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--guarded", action="store_true", help="kills: fine-tune behind a gate")
    args = parser.parse_args()
    if args.what in ("kills", "fuzz"):
        with tempfile.TemporaryDirectory() as name:
            if args.what == "kills":
                kills(Path(name), args.count, args.seed, args.guarded)
            else:
                fuzz(Path(name), args.count, args.seed)
    elif args.what == "stalls":
        commit_times(args.rows, 10_000)
    else:
        soak(args.steps)


if __name__ == "__main__":
    main()
