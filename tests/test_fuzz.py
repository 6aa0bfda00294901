"""Seeded damage to every kind of file that others send: it is read or refused in one sentence, and nothing else.

docs/threat-model.md says what is promised. Bytes are flipped, cut and doubled; and files are written again, whole and
with valid checksums, around values that no honest file has.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import runpy
import shutil
import signal
import sys
import threading
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from helpers import RAGGED, dataset, finished
from test_layouts import PARTS, SUCCESS, THREE, counted, d3rlpy, lerobot, minari, robomimic
from test_policies_of_others import NORMALISED, dense, ppo, torch_save, vecnormalize
from test_untrusted import EVIL, is_plain

from segue import predict
from segue.cli import main
from segue.errors import SegueError
from segue.results import seals
from segue.runs import run as run_module
from segue.system import disk

COUNT = 16
"""Damaged files of each kind: with 4, a reader of `.npz` that let a truncated archive's error through was not seen."""

OF_RUNS = 4
"""Damaged files of each kind in a run's directory."""

LIMIT = 10.0
"""Seconds of work after which a command counts as hanging; what waits for a pipe, test_untrusted sees."""

mutated = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/faults.py"))["mutated"]


# --- damage -----------------------------------------------------------------------------------------------------------

ODD = [
    *(EVIL, "\ud800", "\udcff", "a\0b", "../../x", "/etc/passwd", "x" * 100_000, "", "nan", "a\nb", "`", "__import__"),
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**300), 1e308, -0.5, float("nan"), float("inf"), 1e-320),
    *([], {}, [[]], [None], {"is": "TD3BC"}, {EVIL: EVIL}, [EVIL], list(range(2000)), [1e308] * 3),
]


def deep(depth=3000):
    """A list in a list in a list, as JSON."""
    return "[" * depth + "]" * depth


def places(value, path=()):
    """Yield the paths of all values in JSON."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def odd_value(value, rng):
    """JSON with another value in one or two places, or with a member more, less or under another name."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2])):
        path = rng.choice(list(places(value)))
        if not path:
            value = value if rng.random() < 0.8 else rng.choice(ODD)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        way, key = rng.randrange(6), path[-1]
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[rng.choice([EVIL, "\ud800", "", "x" * 5000, "../x"])] = holder.pop(key)
        elif way == 2 and isinstance(holder, dict):
            holder[EVIL] = rng.choice(ODD)
        else:
            holder[key] = rng.choice(ODD)
    return value


def odd_json(text, rng, sign=lambda value: value):
    """The text of JSON after `odd_value`, signed again; or of JSON that no library writes."""
    value = odd_value(json.loads(text), rng)
    text = json.dumps(sign(value) if isinstance(value, dict) else value)
    way = rng.randrange(12)
    if way == 0:
        return text[:1] + f'"format": 1, "{EVIL}": 1, "{EVIL}": 2, ' + text[1:]
    if way == 1:
        return text.replace(": ", f': {deep()}, "x": ', 1)
    if way == 2:
        return text.replace("1", "1" * 5000, 1)
    return text


def signed(value):
    return disk.signed(value) if "sha256" in value else value


def in_json(path, rng):
    path.write_text(odd_json(path.read_text(), rng, signed), "utf-8", "surrogatepass")


def in_line(path, rng):
    """Another value in a line of a journal, under a valid hash."""
    lines = path.read_text().splitlines()
    k = rng.randrange(len(lines)) if lines else 0
    lines[k : k + 1] = [odd_json(line, rng) for line in lines[k : k + 1]] * rng.choice([1, 1, 2])
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", "surrogatepass")
    recorded = disk.read_json(path.parent / seals.FILE)["journals"]
    seals.write(path.parent, {**recorded, path.name: disk.seal(path.read_bytes())})


def in_bytes(path, rng):
    path.write_bytes(mutated(path.read_bytes(), rng))


def in_header(path, rng):
    """Another value in the header of a safetensors file, or in the description there, with a valid checksum."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    metadata = header.get("__metadata__", {})
    if "segue" in metadata and rng.random() < 0.7:
        metadata["segue"] = odd_json(metadata["segue"], rng, disk.signed)
    elif predict.NAME in metadata and rng.random() < 0.7:
        arrays = safetensors.numpy.load(content)
        sign = lambda about: {**about, "sha256": predict.digest(arrays, about)}
        metadata[predict.NAME] = odd_json(metadata[predict.NAME], rng, sign)
    else:
        header = odd_value(header, rng)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content[begin:])


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def header_of(shape, descr="<f4"):
    """The bytes of a .npy that declares a shape and has no numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def in_config(path, rng):
    """The config of one of d3rlpy's models, which is JSON in a pickle."""
    stored = pickle.loads(path.read_bytes())
    config = odd_json(stored["config"].encode(), rng)
    path.write_bytes(pickle.dumps({**stored, "config": config.encode("utf-8", "replace").decode()}))


ARRAYS = [
    *(np.float32(np.nan), np.zeros((0, 3)), np.zeros((3, 0), "f4"), np.full((60, 3), np.inf), np.ones((60, 3), "c8")),
    *(np.zeros((4, 4, 4), "f2"), np.full(60, 1e300), np.arange(60, dtype="i8"), np.ones(60, "?"), np.array(EVIL)),
    *(
        np.array(["\ud800"]),
        np.array(b"\xff\x1b["),
        np.zeros(60, [("a", "f4")]),
        np.zeros(3, "M8[s]"),
        np.zeros(60, "S3"),
    ),
    *(np.zeros((2,) * 20, "u1"), np.full((60, 2), -1e30, ">f4")),
]


def in_archive(path, rng):
    """A member of a zip archive damaged, replaced, renamed, doubled or left out, with valid checks of the archive."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    k = rng.randrange(len(members))
    name, content = members[k]
    way, more = rng.randrange(8), [(name, content)]
    if way <= 2:
        more = [(name, mutated(content, rng))]
    elif way == 3:
        more = [(rng.choice([EVIL, "../../x", "/x", name.upper(), "x" * 3000]), content)]
    elif way == 4:
        more = [(name, content), (name, mutated(content, rng))]
    elif way == 5:
        more = []
    elif name.endswith(".npy"):
        shape = rng.choice([(2**40,), (2**62, 4), (-1, 3), (60, 2**31)])
        more = [
            (name, npy(rng.choice(ARRAYS)) if way == 6 else header_of(shape, rng.choice(["<f4", "|O", "<U999999"])))
        ]
    elif content[:1] == b"{":
        more = [(name, odd_json(content, rng).encode("utf-8", "surrogatepass"))]
    else:
        more = [(name, bytes(len(content)))]
    members[k : k + 1] = more
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in members:
            with contextlib.suppress(UserWarning):  # of a doubled name, which tests take for an error
                archive.writestr(name, content)


def in_hdf5(path, rng):
    """A column of an HDF5 file replaced, renamed, or made a link."""
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        name = rng.choice(names)
        way = rng.randrange(6)
        if way == 0:
            file.move(name, rng.choice([EVIL, f"{name}{EVIL}", f"{name}x"]))
            return
        if way == 1:
            key = rng.choice(["env_args", "action_space", "observation_space", "env_spec", EVIL])
            file[name].attrs[key] = rng.choice(
                [EVIL, "{}", "[1]", deep(), 3, '{"type": "Box", "shape": [-1]}', "\ud800x"[1:]]
            )
            return
        del file[name]
        if way == 2:
            file[name] = rng.choice(
                [h5py.SoftLink("/"), h5py.SoftLink(f"/{EVIL}"), h5py.ExternalLink("/etc/passwd", "/")]
            )
        elif way == 3:
            file.create_group(f"{name}/{EVIL}")
        elif way == 4:
            file.create_dataset(name, shape=(2**40, 3), dtype="f4", chunks=(2**10, 3))
        else:
            array = rng.choice([a for a in ARRAYS if a.dtype.kind in "fiub" and a.dtype != "f2"])
            file[name] = array


# --- the law ----------------------------------------------------------------------------------------------------------


class Watch:
    """What the process did to files, by Python's audit events, while `at` is a folder: all of it belongs below."""

    at: Path | None = None
    outside: list = []  # noqa: RUF012
    added = False

    @classmethod
    def hook(cls, event, args):
        if cls.at is None or threading.current_thread() is not threading.main_thread():
            return  # threads of a tracker pass their own data on as pickles
        paths, cache = (), os.environ["SEGUE_CACHE"]
        if event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int):
            paths = args[:1] if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else ()
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            paths = args[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = args[:2]
        elif event == "subprocess.Popen" and args[0] in ("git", sys.executable):
            pass  # a resumed run asks git for the revision of the code, and JAX whether there is a GPU
        elif event in ("os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.connect", "pickle.find_class"):
            cls.outside.append((event, str(args)[:200]))
        for path in paths:
            full = os.path.realpath(os.fsdecode(path)) if not isinstance(path, int) else ""
            if not full.startswith((str(cls.at), cache, "/dev/null")) and "__pycache__" not in full:
                cls.outside.append((event, full))


class Hang(BaseException):
    pass


def outcome(call, folder):
    """Call, and hold it to the law; return whether it was refused."""
    if not Watch.added:
        Watch.added = True
        sys.addaudithook(Watch.hook)

    def on_alarm(number, frame):
        raise Hang

    before, printed, code = signal.signal(signal.SIGVTALRM, on_alarm), io.StringIO(), 0
    Watch.at, Watch.outside = folder.resolve(), []
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            call(folder)
    except SystemExit as left:
        code = left.code
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        Watch.at = None
        signal.signal(signal.SIGVTALRM, before)
    assert is_plain(printed.getvalue())
    assert code == 0 or (code == 1 and printed.getvalue().splitlines()[-1].startswith("segue: "))
    assert not Watch.outside
    return code == 1


# --- the files --------------------------------------------------------------------------------------------------------


def a_policy(path):
    shutil.copy(finished() / "policy-0.safetensors", path)


def exported(path):
    main.main(["policy", "export", str(finished()), "--format", path.suffix[1:], "--out", str(path)])


def sb3(path):
    shutil.move(ppo(), path)


def normalised(path):
    shutil.move(ppo(**NORMALISED), path)
    path.with_name("vecnormalize.pkl").write_bytes(vecnormalize())


def nested(path, **options):
    path.write_bytes(torch_save({"actor": dense("fc0", "last_fc"), "epoch": 3, "optim": [0.0, EVIL]}, **options))


def old_torch(path):
    path.write_bytes(torch_save(dense("fc0", "last_fc"), old=True))


def d3rlpy_model(path):
    path.write_bytes(gzip.decompress((Path(__file__).parent / "d3rlpy/td3.d3.gz").read_bytes()))


def described(path):
    table = {"W0": np.ones((4, 3)), "b0": np.ones(4), "W1": np.ones((2, 4)), "b1": np.ones(2), "mean": np.zeros(3)}
    about = {"layers": ["W0", "W1"], "activation": "relu", "squash": "tanh", "obs_mean": "mean", "obs_std": [1, 1, 1]}
    np.savez(path, **table)
    more = {"obs_clip": 5.0, "out_scale": 2.0, "out_shift": [0.0, 1.0], "ignore": []}
    path.with_suffix(".json").write_text(json.dumps(about | more))


def plain_arrays(path):
    path.write_bytes(safetensors.numpy.save(dense("fc0", "last_fc")))


def table(path):
    shutil.copy(dataset(), path)


def hdf5(path):
    with np.load(dataset()) as rows, h5py.File(path, "w") as file:
        file.update({name: rows[name] for name in rows.files if name != "metadata"})


def two_episodes(path):
    d3rlpy(path, [(2, True), (3, False)])


def two_demonstrations(path):
    robomimic(path, [SUCCESS, SUCCESS])


def of_parts(path):
    minari(path, None, PARTS)


def of_a_box(path):
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0], "high": [1, 1]}
    minari(path, box, {"": counted(0, 3, 2)})


def frames(path):
    lerobot(path, THREE)


SHOW, INSPECT = ["policy", "show"], ["data", "inspect"]

KINDS = {
    "policy": (a_policy, SHOW, "p.safetensors", "p.safetensors", (in_bytes, in_header)),
    "exported npz": (exported, SHOW, "p.npz", "p.npz", (in_bytes, in_archive)),
    "exported safetensors": (exported, SHOW, "p.safetensors", "p.safetensors", (in_bytes, in_header)),
    "sb3": (sb3, SHOW, "p.zip", "p.zip", (in_bytes, in_archive)),
    "vecnormalize": (normalised, SHOW, "p.zip", "vecnormalize.pkl", (in_bytes,)),
    "torch": (nested, SHOW, "p.pt:actor", "p.pt", (in_bytes, in_archive, in_archive)),
    "old torch": (old_torch, SHOW, "p.pt", "p.pt", (in_bytes,)),
    "d3rlpy model": (d3rlpy_model, SHOW, "p.d3", "p.d3", (in_bytes, in_config, in_config)),
    "plain npz": (described, SHOW, "p.npz", "p.npz", (in_bytes, in_archive)),
    "description": (described, SHOW, "p.npz", "p.json", (in_bytes, in_json, in_json)),
    "plain safetensors": (plain_arrays, SHOW, "p.safetensors", "p.safetensors", (in_bytes, in_header)),
    "dataset npz": (table, INSPECT, "d.npz", "d.npz", (in_bytes, in_archive, in_archive)),
    "dataset hdf5": (hdf5, INSPECT, "d.hdf5", "d.hdf5", (in_bytes, in_hdf5)),
    "d3rlpy": (two_episodes, INSPECT, "d.h5", "d.h5", (in_bytes, in_hdf5)),
    "robomimic": (two_demonstrations, INSPECT, "d.hdf5:b,a", "d.hdf5", (in_bytes, in_hdf5)),
    "minari": (of_a_box, INSPECT, "m-v0", "m-v0/data/main_data.hdf5", (in_bytes, in_hdf5)),
    "minari of parts": (of_parts, INSPECT, "m-v0", "m-v0/data/main_data.hdf5", (in_hdf5,)),
    "minari metadata": (of_a_box, INSPECT, "m-v0", "m-v0/data/metadata.json", (in_bytes, in_json)),
    "lerobot": (frames, INSPECT, "l", "l/meta/info.json", (in_bytes, in_json)),
}
"""Of each kind of file: what makes it, the command that reads it, its argument, what is damaged, in which ways."""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_read_or_refused(kind, tmp_path):
    make, words, argument, damaged, ways = KINDS[kind]
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole / argument.partition(":")[0])
    held(kind, whole, damaged, ways, lambda folder: main.main([*words, f"{folder / argument}"]), COUNT)


def report(folder):
    main.main(["report", str(folder), "--out", str(folder / "report.md")])


def resume(folder):
    """Go on with a run up to the point where it would train."""
    status = folder / "status.json"
    with contextlib.suppress(ValueError, SegueError, TypeError):
        status.write_text(json.dumps(disk.signed({**json.loads(status.read_text()), "status": "failed"})))
    with pytest.MonkeyPatch.context() as module:
        module.setattr(run_module, "pipeline", stop)
        main.main(["resume", str(folder), "--env-id", RAGGED, "--quiet"])


def stop(*args, **options):
    raise SegueError("Here it would train.")


def export_run(folder):
    main.main(["policy", "export", str(folder), "--format", "npz", "--out", str(folder / "x.npz")])


RUN = {
    "config of a report": ("config.json", (in_bytes, in_json, in_json, in_json), report),
    "config of an export": ("config.json", (in_json,), export_run),
    "config of a resumption": ("config.json", (in_json,), resume),
    "status": ("status.json", (in_bytes, in_json, in_json), report),
    "journals": ("journals.json", (in_bytes, in_json, in_json), report),
    **{name: (f"{name}.jsonl", (in_bytes, in_line, in_line, in_line), report)
       for name in ("returns", "metrics", "episodes", "times", "failures", "machine")},
    "checkpoint": ("checkpoints/offline/manifest.json", (in_bytes, in_json, in_json), report),
    "commit": ("commits/NEWEST/manifest.json", (in_bytes, in_json, in_json), resume),
    "commit's state": ("commits/NEWEST/state.safetensors", (in_bytes, in_header), resume),
}  # fmt: skip
"""Of each file of a run: its name, the ways of damage, and what reads it."""


@pytest.mark.parametrize("kind", RUN)
def test_damaged_run_is_read_or_refused(kind, tmp_path):
    damaged, ways, call = RUN[kind]
    newest = max((path.name for path in (finished() / "commits").glob("[0-9]*")), key=int)
    whole = Path(shutil.copytree(finished(), tmp_path / "whole"))
    held(kind, whole, damaged.replace("NEWEST", newest), ways, call)


def test_damaged_sweep_is_read_or_refused(tmp_path):
    shutil.copytree(finished(), tmp_path / "whole/t/a/0")
    trial = {"folder": "t/a/0", "task": "t", "arm": "a", "seed": 0, "seeds": 2, "command": ["run"]}
    plan = {"format": 1, "trials": [trial, {**trial, "folder": "t/a/1", "seed": 1}]}
    (tmp_path / "whole/sweep.json").write_text(json.dumps(plan))
    held("sweep", tmp_path / "whole", "sweep.json", (in_bytes, in_json, in_json), report)


def held(kind, whole, damaged, ways, call, count=OF_RUNS):
    """Damage a file in copies of a folder, each in one way, and hold a call to the law."""
    assert outcome(call, Path(shutil.copytree(whole, whole.parent / "undamaged"))) == (call is resume)
    for k in range(count):
        rng, case = random.Random(f"{kind} {k}"), Path(shutil.copytree(whole, whole.parent / f"case {k}"))
        way = rng.choice(ways)
        way(case / damaged, rng)
        try:
            outcome(call, case)
        except BaseException as error:
            error.add_note(f"{kind}, case {k}, by {way.__name__}")
            raise
