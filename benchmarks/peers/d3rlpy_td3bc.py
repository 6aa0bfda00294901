"""d3rlpy's TD3+BC (with `--iql` its IQL): offline updates/s with `fit`, or with `--online` env steps/s of `fit_online`.

Online is the usual one-critic-pair pipeline: TD3+BC offline for a while, then policy and value functions
copied into d3rlpy's TD3, which goes on from a buffer that holds the dataset. `--keep-bc` goes on with TD3+BC.
"""

import warnings

import gymnasium
import numpy as np
import torch
from _common import Marks, claim_stdout, load, options, report

DELAY = 2


def episodes(data, d3rlpy):
    """Cut rows where the env ended or the next row does not follow: d3rlpy reads s' off the next row."""
    follows = np.all(data["next_observations"][:-1] == data["observations"][1:], axis=1)
    terminals = data["terminals"] > 0
    timeouts = ~np.append(follows, False) & ~terminals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return d3rlpy.dataset.MDPDataset(
            data["observations"], data["actions"], data["rewards"][:, None], terminals, timeouts
        )


def flat(nets):
    return torch.cat([p.detach().flatten() for p in nets.parameters()])


def networks(algo):
    return {"actor": algo.impl.modules.policy, "critic": algo.impl.modules.q_funcs}


def steps_taken(wrapper):
    state = wrapper.optim.state
    return int(next(iter(state.values()))["step"]) if state else 0


def main():
    args = options(
        __doc__, online="env steps/s of fine-tuning", keep_bc="online with TD3+BC in place of TD3", iql="IQL"
    )
    out = claim_stdout()
    import d3rlpy  # prints while it loads

    d3rlpy.seed(args.seed)
    dataset = episodes(load(args.data), d3rlpy)
    config = d3rlpy.algos.IQLConfig if args.iql else d3rlpy.algos.TD3PlusBCConfig
    algo = config(batch_size=256).create(device=False)
    algo.build_with_dataset(dataset)
    first = {k: flat(v).clone() for k, v in networks(algo).items()}
    losses = []
    update = algo.update

    def watched_update(batch):  # the loss is not handed out by `fit_online`
        result = update(batch)
        losses.append(result["critic_loss"])
        return result

    quiet = {"show_progress": False, "logger_adapter": d3rlpy.logging.NoopAdapterFactory()}
    algo.update = watched_update

    def fit(updates, windows):
        # One epoch per window: every tenth update `fit` averages all losses since its epoch began.
        marks = Marks(updates)
        algo.fit(
            dataset,
            n_steps=updates * windows,
            n_steps_per_epoch=updates,
            callback=lambda *_: marks.mark(),
            **quiet,
        )
        return marks.windows()

    common = {"packages": ("d3rlpy", "torch", "gymnasium", "mujoco", "numpy"), "threads": torch.get_num_threads()}
    if not args.online:
        seconds = fit(args.updates, args.repeat + 1)
        peer, unit, per_window = "d3rlpy_iql" if args.iql else "d3rlpy", "updates/s", args.updates
        expected = args.updates * (args.repeat + 1)
    else:
        fit(args.updates, 1)
        if not args.keep_bc:
            tuned = d3rlpy.algos.TD3Config(batch_size=256, actor_learning_rate=3e-4, critic_learning_rate=3e-4).create(
                device=False
            )
            tuned.build_with_dataset(dataset)
            tuned.copy_policy_from(algo)
            tuned.copy_q_function_from(algo)
            update, algo = tuned.update, tuned
            algo.update = watched_update
        before = steps_taken(algo.impl.modules.critic_optim)
        first = {k: flat(v).clone() for k, v in networks(algo).items()}
        env = gymnasium.make(args.env_id)
        buffer = d3rlpy.dataset.create_fifo_replay_buffer(2_000_000, episodes=dataset.episodes, env=env)
        marks = Marks(args.env_steps)
        total = args.env_steps * (args.repeat + 1)
        algo.fit_online(
            env,
            buffer,
            explorer=d3rlpy.algos.NormalNoise(std=0.1),
            n_steps=total,
            n_steps_per_epoch=total + 1,
            n_updates=args.utd,
            callback=lambda *_: marks.mark(),
            **quiet,
        )
        seconds = marks.windows()
        peer, unit, per_window = "d3rlpy_online", "env steps/s", args.env_steps
        expected = before + args.utd * total
        common |= {"env_id": args.env_id, "utd": args.utd, "algorithm": type(algo).__name__}
    modules = algo.impl.modules
    report(
        out, peer, unit, per_window, seconds,
        critic_steps=(steps_taken(modules.critic_optim), expected),
        actor_steps=(steps_taken(modules.actor_optim), expected // (1 if args.iql else DELAY)),
        loss=float(losses[-1]),
        moved={k: (flat(v) - first[k]).norm().item() for k, v in networks(algo).items()},
        **common,
    )  # fmt: skip


if __name__ == "__main__":
    main()
