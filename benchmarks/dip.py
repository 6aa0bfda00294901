"""`make evidence-dip-NAME`: one policy handed over to each method, and what happens right after.

    python benchmarks/dip.py hopper-medium --policy FILE --dataset FILE     a policy of one's own
    python benchmarks/dip.py door-human                                     a clone of the task's dataset, made first

Every trial is a run directory under --runs; start the same command again and it goes on where it was. All arms use the
preset `small` (5 critics, 4 updates per env step), which is nobody's published budget.
"""

import argparse
from pathlib import Path

from evidence import keep, trial


def arms(online: int) -> dict[str, list[str]]:
    """Name -> recipe and flags."""
    leash = ["--finetune.leash.until", str(online)]
    settle = ["--presample.settle", "500"]
    return {
        "policy-init": ["policy-init"],
        "porl": ["porl"],
        "porl-leash": ["porl", *leash],
        "porl-settle": ["porl", *settle],
        "wsrl": ["wsrl"],
        "rlpd": ["rlpd"],
        "policy-init-leash": ["policy-init", *leash],
        "wsrl-leash": ["wsrl", *leash],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="TASK")
    parser.add_argument("--policy", help="the policy that is handed over; else a clone of the dataset")
    parser.add_argument("--dataset", help="where the task has none of its own")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--offline", type=int, default=50_000, help="updates of the clone, and of WSRL's offline critic"
    )
    parser.add_argument("--warm", type=int, default=5_000, help="env steps of every method's first stage")
    parser.add_argument("--online", type=int, default=50_000, help="env steps in all")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--every", type=int, default=1_000, help="env steps between evaluations")
    parser.add_argument("--only", nargs="+", help="these arms alone")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    root = args.runs / f"dip-{args.name}-{args.seeds}x{args.online}"
    common = ["--task", args.name, "--episodes", str(args.episodes), "--quiet", "--preset", "small"]
    common += ["--dataset", args.dataset] if args.dataset else []
    policy = args.policy
    if policy is None:
        clone = trial(root / "bc", "bc", *common, "--offline.steps", str(args.offline), "--evaluate-updates", "1000000")
        policy = str(clone / "policy-0.safetensors")
    stages = {
        "porl": ["--presample.until", str(args.warm)],
        "wsrl": ["--collect.until", str(args.warm), "--offline.steps", str(args.offline)],
        "rlpd": ["--warmup.until", str(args.warm)],
    }
    common += ["--policy", policy, "--seeds", str(args.seeds), "--evaluate-steps", str(args.every)]
    common += ["--evaluate-updates", "1000000"]
    folders = [
        trial(
            root / arm, *flags[:1], *common, *stages.get(flags[0], []), "--finetune.until", str(args.online), *flags[1:]
        )
        for arm, flags in arms(args.online - args.warm).items()
        if args.only is None or arm in args.only
    ]
    cut = (
        f"{args.seeds} seeds, {args.online:,} env steps in all, {args.warm:,} of them with the frozen policy where the "
        "method has such a stage. Preset small: 5 critics of 2 layers, 4 updates per env step, batch 256. WSRL's "
        f"critic learned by {args.offline:,} updates of Cal-QL on the dataset what that policy is worth. "
        "The papers: 500,000 env steps, 10 critics, 16 updates per env step (PORL), 4 (WSRL), 20 (RLPD)."
    )
    keep(root, folders, cut)


if __name__ == "__main__":
    main()
