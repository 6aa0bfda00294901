"""`segue policy`: exports a policy, describes it in words, or films it."""

import argparse
import shlex

from segue.cli import env_flags, parsing


def parser() -> argparse.ArgumentParser:
    """Return the flags of `segue policy`."""
    flags = parsing.Parser("segue policy", description="Deploy a policy, or look at it.")
    commands = flags.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a deployable policy, and a card beside it (FILE.md)")
    export.add_argument("source", metavar="RUN_OR_FILE", help="a run's directory, or a policy that a run kept")
    export.add_argument("--format", choices=["onnx", "npz", "safetensors"], required=True)
    export.add_argument(
        "--which",
        choices=["deployed", "best", "last"],
        help="of a run: the policy that a gate deployed (default, where there is a gate), the best so far (else the "
        "default, where any was evaluated) or the last",
    )
    export.add_argument(
        "--seed", type=int, metavar="N", help="of a run: policy N; default: that with the highest return"
    )
    export.add_argument(
        "--out", required=True, metavar="FILE", help="FILE.onnx, .npz or .safetensors, as the format is"
    )
    show = commands.add_parser("show", help="what a policy file holds; nothing in it is executed")
    show.add_argument(
        "source", metavar="RUN_OR_FILE", help="a run, whose policy for export is shown, a policy that it kept, an "
        "exported one, or another library's .zip (SB3), .d3 (d3rlpy), .pt, .safetensors, .npz",
    )  # fmt: skip
    film = commands.add_parser("film", help="episodes of a policy as an MP4")
    film.add_argument("source", metavar="RUN_OR_FILE", help="a run, whose policy for export acts, or a policy file")
    film.add_argument("--env-id", help="instead of the one that the run or the file names")
    env_flags.add(film, action_range=False)
    film.add_argument("--episodes", type=int, default=1, help="one after another (1)")
    film.add_argument("--out", required=True, metavar="FILE", help="FILE.mp4")
    return flags


def policy(words: list[str]) -> None:
    """Deploy a policy, or look at it."""
    asked = parser().parse_args(words)
    {"export": _export, "show": _show, "film": _film}[asked.command](asked)


def _export(asked: argparse.Namespace) -> None:
    from segue.deploy import export, stored_policy

    stored = stored_policy.find_policy(asked.source, asked.which, asked.seed)
    card = export.export(stored, asked.out, asked.format)
    look = "written" if asked.format == "onnx" else f"segue policy show {shlex.quote(asked.out)}"
    print(f"{stored}\n{asked.out}: {look}\n{card}: how to use it, and its measured returns")


def _show(asked: argparse.Namespace) -> None:
    from segue.deploy import show

    print(show.show(asked.source))


def _film(asked: argparse.Namespace) -> None:
    from segue.errors import at_least

    at_least(1, episodes=asked.episodes)
    from segue.deploy import film

    who, results = film.film(asked.source, asked.out, asked.episodes, asked.env_id, **env_flags.given(asked))
    print(who)
    for episode, (total, length) in enumerate(results):
        print(f"episode {episode}: return {total:,.1f} in {length:,} steps")
    print(asked.out)
