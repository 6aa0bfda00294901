"""`make bench`: Segue beside hand-written code and other libraries, in turn, and the bars that must hold.

    python benchmarks/run.py [OUT.json]        (peers: benchmarks/peers/setup.sh first; without them, ours alone)
    python benchmarks/run.py --only ensembles  (one part, into results/ensembles.json)

Each round runs everything once, so that a slow spell of the machine does not fall on one peer alone; medians are over
all windows of all rounds. Nothing else should run meanwhile: the spread of each rate's windows is printed beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".peers"
UTDS = (1, 5)
SEEDS = (1, 2, 4)
FAST = {"fast": None, "frozen": None, "kappa1": 1.15}
"""Fast forms of OPT (`ours.py`), and how many times the wall-clock of direct fine-tuning they may take."""
TUNED = ("spot", "iql")
"""Backbones that are measured under OPT besides TD3+BC."""
ENSEMBLE_ENV, ENSEMBLE_UTD = "Hopper-v5", 16
"""Where ensembles of ten critics are measured, and updates per env step there: PORL's."""


def script(python: str | Path, name: str, *flags: str) -> list[str]:
    return [str(python), str(HERE / name), *flags]


def ours(*flags: str) -> list[str]:
    return script(sys.executable, "ours.py", *flags)


def pipelines(data: str, args: argparse.Namespace) -> list[list[str]]:
    window = ["--data", data, "--updates", str(args.updates), "--repeat", str(args.repeat)]
    env_flags = [*window, "--env-id", args.env_id, "--env-steps", str(args.env_steps)]
    found = [
        script(sys.executable, "peers/bare_jax.py", *window),
        *(ours("offline", "--seeds", str(seeds), *window) for seeds in SEEDS),
        ours("offline", "--backbone", "iql", *window),
        *(ours(what, "--backbone", kind, *env_flags) for kind in TUNED for what in ("updates", "online")),
        ours("updates", *env_flags),
        ours("pretrain", *env_flags),
    ]
    for utd in map(str, UTDS):
        found += [ours("online", "--method", method, "--utd", utd, *env_flags) for method in ("opt", "direct")]
    found += [ours("online", "--form", form, "--utd", str(UTDS[-1]), *env_flags) for form in FAST]
    sb3, d3rlpy = VENVS / "sb3/bin/python", VENVS / "d3rlpy/bin/python"
    if sb3.exists():
        found.append(script(sb3, "peers/torch_td3bc.py", *window))
        found += [script(sb3, "peers/sb3_td3.py", "--utd", str(utd), *env_flags) for utd in UTDS]
    if d3rlpy.exists():
        found.append(script(d3rlpy, "peers/d3rlpy_td3bc.py", *window))
        found.append(script(d3rlpy, "peers/d3rlpy_td3bc.py", "--iql", *window))
        found += [script(d3rlpy, "peers/d3rlpy_td3bc.py", "--online", "--utd", str(utd), *env_flags) for utd in UTDS]
    return found


def ensembles(data: str, args: argparse.Namespace) -> list[list[str]]:
    # Few, for each has many and dear updates; two at least: the first compiles one program, all others another.
    steps = max(2, args.env_steps // (2 * ENSEMBLE_UTD))
    window = ["--data", data, "--env-id", ENSEMBLE_ENV, "--utd", str(ENSEMBLE_UTD)]
    window += ["--env-steps", str(steps), "--repeat", str(args.repeat)]
    found = []
    for size in ([], ["--deep"]):
        found.append(script(sys.executable, "peers/bare_jax_sac.py", *size, *window))
        found.append(ours("steps", "--method", "porl", *size, *window))
    sb3 = VENVS / "sb3/bin/python"
    if sb3.exists():
        found += [ours("online", "--method", method, *window) for method in ("porl", "sac")]
        found.append(script(sb3, "peers/sb3_td3.py", "--sac", *window))
    return found


def measure(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def name(result: dict) -> str:
    parts = [result["peer"]]
    parts += [f"utd{result['utd']}"] if result["unit"] == "env steps/s" else []
    parts += [f"seeds{result['seeds']}"] if result.get("seeds", 1) > 1 else []
    return "_".join(parts)


def seconds(*command: str, **env: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env=os.environ | env)
    return time.perf_counter() - began


def start_up(folder: Path) -> dict[str, float]:
    """Medians of 5: the command line's answers, and from nothing to a run's first update with a warm cache."""
    segue = [sys.executable, "-m", "segue.cli"]
    tiny = ["run", "opt", "--env-id", "Pendulum-v1", "--dataset", str(folder / "pendulum.npz"), "--quiet"]
    tiny += ["--offline.steps", "1", "--collect.until", "1", "--pretrain.steps", "1", "--finetune.until", "2"]
    tiny += ["--episodes", "1"]
    cache = {"SEGUE_CACHE": str(folder / "cache")}
    subprocess.run(
        [*segue, "data", "collect", "--env-id", "Pendulum-v1", "--steps", "1000", "--out", tiny[5]],
        capture_output=True, check=True,
    )  # fmt: skip
    found: dict[str, list[float]] = {}
    for k in range(6):  # the first fills the cache and is not counted
        found.setdefault("help", []).append(seconds(*segue, "--help"))
        found.setdefault("run_opt_help", []).append(seconds(*segue, "run", "opt", "--help"))
        found.setdefault("whole_run_of_one_update_per_phase", []).append(
            seconds(*segue, *tiny, "--out", str(folder / f"run{k}"), **cache)
        )
    return {key: round(statistics.median(values[1:]), 3) for key, values in found.items()}


Bar = tuple[float, str, bool]
"""Value, bar, kept."""


def at_least(value: float, bar: float) -> Bar:
    return round(value, 3), f">= {bar}", value >= bar


def below(value: float, bar: float) -> Bar:
    return round(value, 3), f"< {bar}", value < bar


def printed(value: float, beside: str = "printed") -> Bar:
    return round(value, 3), beside, True


def pipeline_bars(rates: dict[str, float], start: dict[str, float], memory: dict) -> dict[str, Bar]:
    found: dict[str, Bar] = {}
    offline = rates["segue_offline"]
    found["(a) TD3+BC offline / bare JAX scan"] = at_least(offline / rates["bare_jax"], 0.9)
    if "d3rlpy" in rates:
        found["(a) TD3+BC offline / d3rlpy"] = at_least(offline / rates["d3rlpy"], 2.5)
    if "torch" in rates:
        found["(a) TD3+BC offline / plain PyTorch loop"] = at_least(offline / rates["torch"], 1.8)
    if "d3rlpy_iql" in rates:
        found["(h) IQL offline / d3rlpy's IQL"] = at_least(rates["segue_offline_iql"] / rates["d3rlpy_iql"], 2.5)
    for kind in TUNED:
        end, alone = rates[f"segue_online_opt_{kind}_utd1"], rates[f"segue_updates_opt_{kind}"]
        found[f"(h) OPT on {kind} end to end / its updates alone, UTD 1"] = at_least(end / alone, 0.75)
    for utd in UTDS:
        online, alone = rates[f"segue_online_opt_utd{utd}"], rates["segue_updates_opt"] / utd
        found[f"(b) OPT end to end / its updates alone, UTD {utd}"] = at_least(online / alone, 0.85)
        if (peer := f"d3rlpy_online_utd{utd}") in rates:
            found[f"(c) OPT (two value functions) / d3rlpy (one), UTD {utd}"] = at_least(online / rates[peer], 1.0)
        if (peer := f"sb3_utd{utd}") in rates:
            found[f"(c) OPT / Stable-Baselines3 TD3, UTD {utd}"] = printed(online / rates[peer])
    for seeds in SEEDS[1:]:
        found[f"(d) seed-updates/s, {seeds} seeds / 1"] = at_least(rates[f"segue_offline_seeds{seeds}"] / offline, 0.95)
    found["(e) segue --help, s"] = below(start["help"], 0.5)
    found["(e) segue run opt --help, s"] = below(start["run_opt_help"], 3)
    found["(e) a whole OPT run of one update per phase, warm cache, s"] = below(
        start["whole_run_of_one_update_per_phase"], 10
    )
    found["(f) resident memory added by loading 1M walker2d rows / their size"] = below(memory["ratio"], 1.3)
    one = rates["segue_online_direct_utd5"]
    cost = "(g) OPT / direct, wall-clock of the online loop, UTD 5"
    found[cost] = below(one / rates["segue_online_opt_utd5"], 1.5)
    for form, bar in FAST.items():
        ratio = one / rates[f"segue_online_opt_{form}_utd5"]
        found[f"{cost}, form `{form}`"] = below(ratio, bar) if bar else printed(ratio)
    steps = 300_000  # OPT's protocol on MuJoCo: UTD 5, 25k of these collection, 50k updates of phase 3
    direct = (steps - 25_000) / rates["segue_online_direct_utd5"]
    opt = (steps - 25_000) / rates["segue_online_opt_utd5"] + 50_000 / rates["segue_pretrain_opt"]
    found["(g) online wall-clock, OPT / direct, phase 3 included (from these rates)"] = printed(
        opt / direct, "paper: 1.5"
    )
    return found


def ensemble_bars(rates: dict[str, float]) -> dict[str, Bar]:
    found: dict[str, Bar] = {}
    for suffix, size in {"": "2x256", "_deep": "4x256"}.items():
        ratio = rates[f"segue_steps_porl{suffix}"] / rates[f"bare_jax_sac{suffix}"]
        found[f"(i) PORL's SAC, ten critics of {size}, UTD {ENSEMBLE_UTD} / bare JAX"] = at_least(ratio, 0.9)
    if (peer := f"sb3_sac_utd{ENSEMBLE_UTD}") in rates:  # as many critics and updates: so the ratio of env steps/s
        ratio = lambda method: rates[f"segue_online_{method}_utd{ENSEMBLE_UTD}"] / rates[peer]
        text = "Stable-Baselines3 SAC, per member-update"
        found[f"(j) PORL's SAC (one policy step per env step) / {text}"] = at_least(ratio("porl"), 2.0)
        found[f"(j) the same arithmetic (a policy step per update) / {text}"] = printed(ratio("sac"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--only", choices=["pipelines", "ensembles"])
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--env-steps", type=int, default=150)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    args.out = args.out or HERE / "results" / f"{args.only or 'speed'}.json"
    results: dict[str, list[dict]] = {}
    before = describe()
    start, memory = {}, {}
    with tempfile.TemporaryDirectory() as folder:

        def data(env_id: str) -> str:
            path = str(Path(folder) / f"{env_id}.npz")
            subprocess.run([sys.executable, str(HERE / "make_data.py"), path, "--env-id", env_id], check=True)
            return path

        commands = [] if args.only == "ensembles" else pipelines(data(args.env_id), args)
        commands += [] if args.only == "pipelines" else ensembles(data(ENSEMBLE_ENV), args)
        for _ in range(args.rounds):
            for command in commands:
                result = measure(command)
                results.setdefault(name(result), []).append(result)
                low, high = min(result["windows"]), max(result["windows"])  # far apart: the machine was not quiet
                print(f"{name(result):28}{result['median']:9.1f}  [{low:.1f}, {high:.1f}] {result['unit']}", flush=True)
        if args.only != "ensembles":
            start = start_up(Path(folder))
            memory = measure([sys.executable, str(HERE / "memory.py")])
    rates = {key: statistics.median(w for r in runs for w in r["windows"]) for key, runs in results.items()}
    kept = {} if args.only == "ensembles" else pipeline_bars(rates, start, memory)
    kept |= {} if args.only == "pipelines" else ensemble_bars(rates)
    for text, (value, bar, held) in kept.items():
        print(f"{'ok  ' if held else 'MISS'} {text}: {value} ({bar})")
    file = {
        "machine": before, "load_average_after": describe()["load_average"],
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "bars": {text: {"value": value, "bar": bar, "kept": held} for text, (value, bar, held) in kept.items()},
        "rates": rates, "start_up_seconds": start, "memory": memory, "runs": results,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(file, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
