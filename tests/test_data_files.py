"""Files: what they must give back, what they must not be able to do, and data collected here."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import h5py
import jax
import numpy as np
import pytest

from segue.core import Spec
from segue.data.collecting import collect_random
from segue.data.inspection import inspect, render
from segue.data.loading import from_arrays, load
from segue.data.saving import save
from segue.envs.make import _quiet_mujoco, make_env
from segue.errors import DataError, SegueError

STEPS = 450


@pytest.fixture(scope="module")
def real():
    root = os.environ.get("SEGUE_TEST_DATA")
    if not root:
        pytest.skip("SEGUE_TEST_DATA names no folder of real data")
    return Path(root)


@pytest.fixture(scope="module")
def pendulum():
    """Two whole episodes of 200 steps and a part of a third."""
    return collect_random("Pendulum-v1", STEPS, seed=3)


def columns(data, **other):
    t = data.transitions
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    return {**dict(zip(names, t, strict=True)), "timeouts": data.timeouts, **other}


def same(a, b):
    for ours, theirs in zip((*a.transitions, a.ends), (*b.transitions, b.ends), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def write_hdf5(path, table, **kw):
    with h5py.File(path, "w") as file:
        for name, value in table.items():
            file.create_dataset(name, data=value, **kw)
    return path


# ---- collecting and saving ---------------------------------------------------------------------------------------


def test_collecting_keeps_the_horizon_and_the_seed(pendulum):
    assert np.flatnonzero(pendulum.ends).tolist() == [199, 399, 449]
    assert np.flatnonzero(pendulum.timeouts).tolist() == [199, 399]
    assert not pendulum.transitions.terminal.any()
    assert pendulum.spec().high == (2.0,)
    same(pendulum, collect_random("Pendulum-v1", STEPS, seed=3))
    other = collect_random("Pendulum-v1", 10, seed=4)
    assert (other.transitions.action != pendulum.transitions.action[:10]).all()


def test_collecting_from_a_factory_keeps_both_ends_apart():
    class Walk(gym.Env):
        """Terminates after five steps; a limit of eight or of five cuts."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gym.spaces.Box(-1.0, 1.0, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = self.np_random.normal(size=1)
            self.t = 0
            return self.x.copy(), {}

        def step(self, action):
            self.x += action  # in place: a row must not change after it was stored
            self.t += 1
            return self.x, 1.0, self.t == 5, False, {}

    for limit, ends, limits in ((8, 5, 0), (5, 5, 0), (3, 0, 6)):  # at 5 both are true, and terminated wins
        data = collect_random(lambda limit=limit: gym.wrappers.TimeLimit(Walk(), limit), 25, 0)
        length = min(limit, 5)
        assert data.lengths()[0] == length
        assert data.transitions.terminal.sum() == ends
        assert data.timeouts.sum() == (limits and 25 // length)


@pytest.mark.parametrize("format", ["npz", "minari"])
def test_what_is_saved_is_what_is_loaded(pendulum, tmp_path, format):
    path = tmp_path / "pendulum" / "random-v0"
    save(pendulum, path, format=format)
    back = load(path)
    same(pendulum, back)
    assert (back.low, back.high, back.env_id, back.dropped) == ((-2.0,), (2.0,), back.env_id, 0)
    if format == "npz":
        assert back.env_id == "Pendulum-v1"
        np.testing.assert_array_equal(back.timeouts, pendulum.timeouts)
        with np.load(path, allow_pickle=False) as raw:
            about = json.loads(str(raw["metadata"]))
        assert "gymnasium" in about["versions"]
    with pytest.raises(SegueError, match="exists"):
        save(pendulum, path, format=format)
    save(pendulum, path, format=format, overwrite=True)
    same(pendulum, load(path))
    assert [p.name for p in path.parent.iterdir()] == ["random-v0"]


def test_minari_reads_what_is_collected(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    ours = collect_random("Pendulum-v1", 210, 0, tmp_path / "segue" / "pendulum-v0", format="minari")
    theirs = minari.load_dataset("segue/pendulum-v0")
    assert (theirs.total_episodes, theirs.total_steps, theirs.spec.env_spec.id) == (2, 210, "Pendulum-v1")
    first, second = theirs.iterate_episodes()
    np.testing.assert_array_equal(first.observations[1:], ours.transitions.next_obs[:200])
    np.testing.assert_array_equal(second.actions, ours.transitions.action[200:])
    assert first.truncations[-1]
    assert not first.terminations.any()
    again = load("segue/pendulum-v0")
    same(ours, again)
    assert again.env_id == "Pendulum-v1"
    with pytest.raises(DataError, match="did you mean segue/pendulum-v0"):
        load("segue/pendulun-v0")


@pytest.mark.parametrize("format", ["npz", "minari"])
def test_an_interrupted_collection_leaves_nothing(tmp_path, format):
    def interrupt(done, total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_random("Pendulum-v1", 100, 0, tmp_path / "x", format=format, progress=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["npz", "minari"])
def test_an_interrupted_save_keeps_the_old_file(pendulum, tmp_path, format, monkeypatch):
    save(pendulum, tmp_path / "x", format=format)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("segue.data.saving.os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        save(pendulum, tmp_path / "x", format=format, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    same(pendulum, load(tmp_path / "x"))


def test_a_folder_is_put_back_when_its_replacement_fails(pendulum, tmp_path, monkeypatch):
    save(pendulum, tmp_path / "x", format="minari")
    replace = os.replace

    def fail(old, new):
        if Path(old).name == "part":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr("segue.data.saving.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save(pendulum, tmp_path / "x", format="minari", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    same(pendulum, load(tmp_path / "x"))


def test_progress_ends_at_the_end():
    seen = []
    collect_random("Pendulum-v1", 250, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (250, 250)
    assert len(seen) < 130


# ---- D4RL's layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}])
def test_d4rl_files_of_any_packing(pendulum, tmp_path, packing):
    table = columns(pendulum)
    same(pendulum, load(write_hdf5(tmp_path / "a.hdf5", table, **packing)))
    wide = {k: v if v.dtype == bool else v.astype(np.float64) for k, v in table.items()}
    same(pendulum, load(write_hdf5(tmp_path / "b.hdf5", wide, **packing)))
    table.pop("next_observations")
    short = load(write_hdf5(tmp_path / "c.hdf5", table, **packing))
    same(short, from_arrays(**table))
    assert short.dropped == 3


def test_npz_of_any_make(pendulum, tmp_path):
    table = columns(pendulum)
    table["observations"] = np.asfortranarray(table["observations"])
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **table)
        same(pendulum, load(tmp_path / "x.npz"))


# ---- hostile and damaged files -----------------------------------------------------------------------------------


def link(name):
    def damage(file, folder):
        del file[name]
        file[name] = h5py.ExternalLink(str(folder / "other.h5"), "/observations")

    return damage


def soft(file, folder):
    del file["rewards"]
    file["rewards"] = h5py.SoftLink("/actions")


def remake(name, **kw):
    def damage(file, folder):
        old = file[name][:]
        del file[name]
        file.create_dataset(name, **{"data": old, **kw})

    return damage


def external(file, folder):
    del file["rewards"]
    file.create_dataset("rewards", (STEPS,), "f4", external=[(str(folder / "secret"), 0, STEPS * 4)])


def virtual(file, folder):
    del file["rewards"]
    layout = h5py.VirtualLayout((STEPS,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "rewards", (STEPS,))
    file.create_virtual_dataset("rewards", layout)


def huge(**kw):
    def damage(file, folder):
        for name, size in (("observations", (10**9, 17)), ("rewards", (10**9,))):
            del file[name]
            file.create_dataset(name, size, "f4", **kw)

    return damage


def unwritten(file, folder):
    del file["rewards"]
    file.create_dataset("rewards", (STEPS,), "f4")


def group(file, folder):
    del file["rewards"]
    file.create_group("rewards/x")


HOSTILE = {
    "external link": (link("observations"), "link"),
    "soft link": (soft, "link"),
    "external storage": (external, "another file"),
    "virtual": (virtual, "another file"),
    "strings": (remake("rewards", data=["a"] * STEPS), "not numbers"),
    "references": (remake("rewards", data=[None] * STEPS, dtype=h5py.ref_dtype), "not numbers"),
    "ragged": (remake("rewards", data=None, shape=(STEPS,), dtype=h5py.vlen_dtype(np.float32)), "not numbers"),
    "compound": (remake("rewards", data=np.zeros(STEPS, [("a", "f4")])), "not numbers"),
    "filter": (remake("rewards", scaleoffset=2), "filters"),
    "68 GB contiguous": (huge(), "declares 68000000000 bytes"),
    "68 GB in pieces": (huge(chunks=True, compression="gzip"), "pieces"),
    "one huge piece": (
        remake("rewards", chunks=(10**7,), maxshape=(None,), compression="gzip", data=np.zeros(STEPS, "f4")),
        "larger than itself",
    ),
    "never written": (unwritten, "declares 1800 bytes and holds 0"),
    "group": (group, "group"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_hdf5_is_refused_unread(pendulum, tmp_path, case):
    damage, word = HOSTILE[case]
    write_hdf5(tmp_path / "other.h5", columns(pendulum))
    (tmp_path / "secret").write_bytes(bytes(STEPS * 4))
    path = write_hdf5(tmp_path / "x.h5", columns(pendulum))
    with h5py.File(path, "a") as file:
        damage(file, tmp_path)
    with pytest.raises(DataError, match=word) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_cut_and_garbled_files_are_refused(pendulum, tmp_path):
    h5, npz = write_hdf5(tmp_path / "x.h5", columns(pendulum), compression="gzip"), tmp_path / "x.npz"
    np.savez_compressed(npz, **columns(pendulum))
    with h5py.File(h5) as file:
        inside = file["observations"].id.get_chunk_info(0).byte_offset + 50
    for path, place in ((h5, inside), (npz, 500)):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError):
            load(path)
        garbled = bytearray(whole)
        garbled[place : place + 100] = bytes(b ^ 0xFF for b in garbled[place : place + 100])
        path.write_bytes(garbled)
        with pytest.raises(DataError, match=r"read as|ends early"):
            load(path)
    np.savez(npz, **columns(pendulum))
    one = bytearray(npz.read_bytes())
    one[500] ^= 1  # a single bit of an unpacked column: the archive's checksum tells
    npz.write_bytes(one)
    with pytest.raises(DataError, match="read as"):
        load(npz)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="neither HDF5"):
        load(tmp_path / "text")


def npy(shape, dtype="<f4", body=b""):
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (npy((10**9, 17)), "does not fit"),
        (npy((10**15, 17)), "does not fit"),
        (npy((-1, -4), body=bytes(16)), "does not fit"),
        (npy((STEPS,), "|O", bytes(8 * STEPS)), "never unpickled"),
        (b"garbage", "header"),
        (npy((STEPS, 3), body=bytes(12 * STEPS)) + bytes(50_000_000), "trap|does not fit"),
    ],
)
def test_hostile_npz_is_refused_unread(pendulum, tmp_path, member, word):
    path = tmp_path / "x.npz"
    table = columns(pendulum)
    table.pop("observations")
    np.savez(path, **table)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", member)
    with pytest.raises(DataError, match=word):
        load(path)


def test_pickles_are_never_opened(tmp_path, pendulum):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    table = columns(pendulum)
    table["rewards"] = np.array([Trap()] * STEPS, dtype=object)
    np.savez(tmp_path / "x.npz", **table)
    with pytest.raises(DataError, match="never unpickled"):
        load(tmp_path / "x.npz")
    assert not (tmp_path / "sprung").exists()


def test_gymnasium_s_names_are_told_what_to_become(pendulum, tmp_path):
    table = columns(pendulum)
    for theirs, ours in (("terminations", "terminals"), ("truncations", "timeouts")):
        table[theirs] = table.pop(ours)
    np.savez(tmp_path / "x.npz", **table)
    with pytest.raises(DataError, match="rename terminations to terminals and truncations to timeouts"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", observations=table["observations"])
    with pytest.raises(
        DataError, match=r"it holds observations; arrange its arrays yourself with segue\.data\.from_arrays"
    ):
        load(tmp_path / "y.npz")


def test_what_only_load_can_settle_is_kept_with_save(pendulum, tmp_path):
    """The advice of the messages: a file that needs arguments, read once and saved, needs them no more."""
    cut, both = columns(pendulum), columns(pendulum)
    del cut["next_observations"], cut["timeouts"]
    both["terminals"] = both["timeouts"]
    for name, table, argument in (("cut", cut, {"max_episode_steps": 200}), ("both", both, {"both": "timeout"})):
        np.savez(tmp_path / f"{name}.npz", **table)
        (word,) = argument
        with pytest.raises(DataError, match=rf"segue\.data\.load\(\.\.\., {word}=.*segue\.data\.save"):
            load(tmp_path / f"{name}.npz")
        once = load(tmp_path / f"{name}.npz", **argument)
        save(once, tmp_path / f"{name}-kept.npz")
        same(load(tmp_path / f"{name}-kept.npz"), once)


# ---- Minari ------------------------------------------------------------------------------------------------------


def edit(path, change):
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        change(file)


def put(name, value):
    def change(file):
        if name in file:
            del file[name]
        file[name] = value

    return change


def blank(file):
    for name in list(file["episode_1"]):
        del file[f"episode_1/{name}"]
    for name, shape in (("observations", (1, 3)), ("actions", (0, 1)), ("rewards", (0,))):
        file[f"episode_1/{name}"] = np.zeros(shape, "f4")
    file["episode_1/terminations"] = file["episode_1/truncations"] = np.zeros(0, bool)


early = np.arange(200) == 17
MINARI = {
    "no steps": (blank, "episode 1 has no steps"),
    "dictionary": (lambda f: (put("episode_0/observations", np.zeros(0))(f), f.move("episode_0/observations", "o"),
                              f.create_group("episode_0/observations")), "dictionary"),
    "short": (put("episode_0/observations", np.zeros((200, 3))), r"observations have shape \(200, 3\).*\(201, 3\)"),
    "early end": (put("episode_1/terminations", early), "episode 1 is marked in terminations at step 17"),
    "discrete": (put("episode_0/actions", np.zeros(200, int)), "continuous"),
    "missing": (lambda f: f.pop("episode_2/rewards"), "episode 2 has no rewards"),
    "nan": (put("episode_1/observations", np.where(np.arange(603).reshape(201, 3) == 40, np.nan, 1.0)),
            "episode 1, step 13|episode 1, step 12"),
    "done twice": (lambda f: [put(f"episode_{k}/terminations", np.arange(200) == 199)(f) for k in (0, 1)], "both="),
    "link": (lambda f: put("episode_0", h5py.SoftLink("/episode_1"))(f), "link"),
}  # fmt: skip


@pytest.mark.parametrize("case", MINARI)
def test_minari_refusals(pendulum, tmp_path, case):
    change, word = MINARI[case]
    save(pendulum, tmp_path / "x-v0", format="minari")
    edit(tmp_path / "x-v0", change)
    with pytest.raises(DataError, match=word) as caught:
        load(tmp_path / "x-v0")
    assert "\n" not in str(caught.value)


def test_one_task_that_ends_on_its_last_step_is_no_double_mark(tmp_path):
    """Gymnasium sets both flags then; it is the exception that tells it from a `done` written twice."""
    rng = np.random.default_rng(0)
    ends = np.arange(20) % 5 == 4
    data = from_arrays(rng.normal(size=(20, 2)), rng.uniform(-1, 1, (20, 1)), np.ones(20), ends & (np.arange(20) < 5),
                       next_observations=None, timeouts=None, episode_ends=ends, low=-1, high=1)  # fmt: skip
    save(data, tmp_path / "x-v0", format="minari")
    edit(tmp_path / "x-v0", put("episode_0/truncations", np.arange(5) == 4))
    back = load(tmp_path / "x-v0")
    assert np.flatnonzero(back.transitions.terminal).tolist() == [4]
    assert back.timeouts is not None
    assert not back.timeouts[4]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"action_space": '{"type": "Discrete", "n": 3}'}, "Discrete"),
        ({"action_space": '{"type": "Box", "shape": [2], "low": [-1, -1], "high": [1, 1]}'}, "shape"),
        ({"action_space": "{"}, "JSON"),
        ({"action_space": '{"type": "Box", "shape": [1], "low": ["x"], "high": [1]}'}, "box"),
    ],
)
def test_minari_descriptions_are_only_read(pendulum, tmp_path, change, word):
    save(pendulum, tmp_path / "x-v0", format="minari")
    file = tmp_path / "x-v0" / "data" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=word):
        load(tmp_path / "x-v0")


@pytest.mark.parametrize(
    ("env_id", "kept"), [("Pendulum-v1", "Pendulum-v1"), ("os:Env-v0", None), ("a/b/c", None), (3, None)]
)
def test_of_an_env_description_only_a_plain_id_is_kept(pendulum, tmp_path, env_id, kept):
    save(pendulum, tmp_path / "x-v0", format="minari")
    file = tmp_path / "x-v0" / "data" / "metadata.json"
    spec = json.dumps({"id": env_id, "entry_point": "os:abort"})
    file.write_text(json.dumps({**json.loads(file.read_text()), "env_spec": spec}))
    assert load(tmp_path / "x-v0").env_id == kept


WATCH = """
import resource, sys, time
from pathlib import Path
from segue.policies import policy_file
from segue.data import load
from segue.errors import SegueError

folder = Path(sys.argv[1])
reads = {".safetensors": policy_file.load}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for good in sorted(folder.glob("good*")):  # what is imported and opened once
    reads.get(good.suffix, load)(good)


def audit(event, args):
    if event in ("exec", "import", "os.system", "pickle.find_class") or event.split(".")[0] in ("socket", "subprocess"):
        raise SystemExit(f"{event} {args}")
    if event == "open" and isinstance(args[0], str) and not args[0].startswith(str(folder)):
        raise SystemExit(f"opened {args[0]}")


sys.addaudithook(audit)
for path in sorted(folder.glob("bad*")):
    size = sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
    began, before = time.monotonic(), peak()
    try:
        reads.get(path.suffix, load)(path)
        raise SystemExit(f"{path} was read")
    except SegueError as error:
        assert "\\n" not in str(error), error
    assert time.monotonic() - began < 5, f"{path} took too long"
    assert peak() - before < 2 * size + (256 << 20), f"{path} took {peak() - before} bytes"
    print(path.name)
"""


def tensors(header, body=b""):
    """A safetensors file whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


F4 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TENSORS = {
    "overlapping": tensors({"a": F4, "b": F4}, bytes(8)),
    "68 GB": tensors({"a": {"dtype": "F32", "shape": [10**9, 17], "data_offsets": [0, 68 * 10**9]}}, bytes(8)),
    "huge header": (10**15).to_bytes(8, "little") + b"{}",
    "deep header": tensors(b'{"a":' * 100_000),
    "twice": tensors(b'{"a":' + json.dumps(F4).encode() + b',"a":' + json.dumps(F4).encode() + b"}", bytes(8)),
    "outside": tensors({"a": {**F4, "data_offsets": [-8, 0]}}, bytes(8)),
    "empty": b"",
}


@pytest.mark.slow
def test_hostile_files_run_nothing_open_nothing_and_take_no_room(pendulum, tmp_path):
    """All of them in one process under an audit hook: no exec, no import by name, no socket, no process, no file
    outside the folder; under 5 s each, and under twice its size plus 256 MB."""
    from segue.nn.actors import Deterministic
    from segue.nn.mlp import MLP
    from segue.policies import policy_file

    write_hdf5(tmp_path / "other.h5", columns(pendulum))
    (tmp_path / "secret").write_bytes(bytes(STEPS * 4))
    write_hdf5(tmp_path / "good.h5", columns(pendulum), compression="gzip")
    np.savez_compressed(tmp_path / "good.npz", **columns(pendulum))
    save(pendulum, tmp_path / "good-v0", format="minari")
    actor = Deterministic(MLP((3, 4, 1), key=jax.random.key(0)))
    policy_file.save(actor, Spec(3, 1, (-1.0,), (1.0,)), tmp_path / "good-policy")
    names = []
    for case, (damage, _) in HOSTILE.items():
        path = write_hdf5(tmp_path / f"bad {case}.h5", columns(pendulum))
        with h5py.File(path, "a") as file:
            damage(file, tmp_path)
        names.append(path.name)
    trap = b"cos\nsystem\n(S'touch sprung'\ntR."
    members = {
        "zip bomb": {"observations.npy": npy((10**9,), body=bytes(300_000_000))},
        "pickle": {"observations.npy": npy((STEPS,), "|O", trap)},
        "outside": {"../../observations.npy": npy((2,), body=bytes(8)), "/etc/x.npy": npy((2,), body=bytes(8))},
        "petabytes": {"observations.npy": npy((10**15, 17))},
        "many": {f"{k}.npy": b"" for k in range(20_000)},
    }
    for case, files in members.items():
        with zipfile.ZipFile(tmp_path / f"bad {case}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        names.append(f"bad {case}.npz")
    for case, content in TENSORS.items():
        (tmp_path / f"bad {case}.safetensors").write_bytes(content)
        names.append(f"bad {case}.safetensors")
    for case, text in (("deep", '{"a":' * 100_000), ("twice", '{"action_space": 1, "action_space": 2}')):
        save(pendulum, tmp_path / f"bad{case}-v0", format="minari")
        (tmp_path / f"bad{case}-v0" / "data" / "metadata.json").write_text(text)
        names.append(f"bad{case}-v0")
    done = subprocess.run([sys.executable, "-c", WATCH, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == sorted(names)


# ---- real data ---------------------------------------------------------------------------------------------------


def test_door_human(real, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(real / "minari_root"))
    data = load("D4RL/door/human-v2")
    assert (len(data), len(data.episodes()), data.env_id) == (6729, 25, "AdroitHandDoor-v1")
    assert data.spec() == Spec(39, 28, (-1.0,) * 28, (1.0,) * 28)
    same(data, load(real / "minari_root" / "D4RL" / "door" / "human-v2"))
    same(data, load(real / "minari_root" / "D4RL" / "door" / "human-v2" / "data" / "main_data.hdf5"))


def test_door_demonstrations_leave_the_box(real):
    with np.load(real / "adroit" / "door-v0_demos.npz", allow_pickle=False) as raw:
        actions, ends = raw["actions"], np.zeros(6729, bool)
        ends[np.cumsum(raw["lengths"]) - 1] = True
        table = (raw["observations"], actions, raw["rewards"], np.zeros(6729, bool))
    assert np.mean(np.abs(actions) > 1) == pytest.approx(0.056, abs=5e-4)
    with pytest.raises(DataError, match="outside the box"):
        from_arrays(*table, episode_ends=ends, low=-1, high=1)
    data = from_arrays(*table, episode_ends=ends, low=-1, high=1, clip_actions=True)
    assert (len(data), data.dropped, len(data.episodes())) == (6704, 25, 25)


def test_every_d4rl_sample_loads(real):
    files = sorted((real / "d4rl_v2_small").glob("*.npz"))
    assert len(files) == 15
    for file in files:
        data = load(file, low=-1, high=1)
        with np.load(file, allow_pickle=False) as raw:
            np.testing.assert_array_equal(data.ends, raw["episode_ends"])
            np.testing.assert_array_equal(data.transitions.terminal, raw["terminals"])
        assert str(len(data.episodes())) in render(inspect(data))
        assert not data.notes


def test_pendulum_files_load(real):
    for name in ("pendulum_random", "pendulum"):
        data = load(real / "pendulum" / f"{name}_v1.1.0.h5", low=-2, high=2)
        assert (len(data), data.dropped, set(data.lengths().tolist())) == (99_000, 500, {198})


def test_mujoco_is_quiet_and_its_other_warnings_are_not(tmp_path, monkeypatch, capfd):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo logs into the current folder
    try:
        make_env("HalfCheetah-v5").close()
    except SegueError as wrong:
        pytest.skip(str(wrong))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    if not hasattr(mujoco, "get_mju_user_warning"):
        return
    assert mujoco.get_mju_user_warning() is None
    with _quiet_mujoco():
        mujoco.get_mju_user_warning()("something else")
    assert "something else" in capfd.readouterr().err
