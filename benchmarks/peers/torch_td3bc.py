"""TD3+BC as a plain PyTorch loop, in the shape in which such scripts are commonly published.

NumPy replay memory, a batch drawn and converted per update, `optim.Adam` and the target update with their
defaults. `--fast` is the same loop tuned: data kept as tensors, fused Adam, multi-tensor target update.
"""

import copy

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from _common import KEYS, claim_stdout, load, options, report, windows

BATCH, WIDTH, LR, GAMMA, TAU, DELAY, ALPHA, NOISE, CLIP = 256, 256, 3e-4, 0.99, 0.005, 2, 2.5, 0.2, 0.5


class Actor(nn.Module):
    def __init__(self, n_obs, n_act):
        super().__init__()
        self.l1 = nn.Linear(n_obs, WIDTH)
        self.l2 = nn.Linear(WIDTH, WIDTH)
        self.l3 = nn.Linear(WIDTH, n_act)

    def forward(self, s):
        return torch.tanh(self.l3(F.relu(self.l2(F.relu(self.l1(s))))))


class Critic(nn.Module):
    """Two value functions, each with its own layers."""

    def __init__(self, n_obs, n_act):
        super().__init__()
        self.l1, self.l4 = nn.Linear(n_obs + n_act, WIDTH), nn.Linear(n_obs + n_act, WIDTH)
        self.l2, self.l5 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.l3, self.l6 = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def q1(self, s, a):
        sa = torch.cat([s, a], 1)
        return self.l3(F.relu(self.l2(F.relu(self.l1(sa)))))

    def forward(self, s, a):
        sa = torch.cat([s, a], 1)
        first = self.l3(F.relu(self.l2(F.relu(self.l1(sa)))))
        second = self.l6(F.relu(self.l5(F.relu(self.l4(sa)))))
        return first, second


class Memory:
    def __init__(self, data, fast):
        self.columns = [data[k] if data[k].ndim > 1 else data[k][:, None] for k in KEYS]
        self.size, self.fast = len(data["rewards"]), fast
        if fast:
            self.columns = [torch.from_numpy(c) for c in self.columns]

    def sample(self):
        if self.fast:
            rows = torch.randint(self.size, (BATCH,))
            return [column[rows] for column in self.columns]
        rows = np.random.randint(0, self.size, size=BATCH)
        return [torch.FloatTensor(column[rows]) for column in self.columns]


class TD3BC:
    def __init__(self, n_obs, n_act, fast):
        self.actor = Actor(n_obs, n_act)
        self.actor_slow = copy.deepcopy(self.actor)
        self.critic = Critic(n_obs, n_act)
        self.critic_slow = copy.deepcopy(self.critic)
        kind = {"fused": True} if fast else {}
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), lr=LR, **kind)
        self.critic_opt = torch.optim.Adam(self.critic.parameters(), lr=LR, **kind)
        self.updates, self.fast = 0, fast

    def polyak(self, net, slow):
        if self.fast:
            with torch.no_grad():
                torch._foreach_lerp_(list(slow.parameters()), list(net.parameters()), TAU)
            return
        for p, p_slow in zip(net.parameters(), slow.parameters(), strict=True):
            p_slow.data.copy_(TAU * p.data + (1 - TAU) * p_slow.data)

    def update(self, memory):
        self.updates += 1
        s, a, r, s2, terminal = memory.sample()
        with torch.no_grad():
            noise = (torch.randn_like(a) * NOISE).clamp(-CLIP, CLIP)
            a2 = (self.actor_slow(s2) + noise).clamp(-1, 1)
            q1, q2 = self.critic_slow(s2, a2)
            y = r + GAMMA * (1 - terminal) * torch.min(q1, q2)
        q1, q2 = self.critic(s, a)
        loss = F.mse_loss(q1, y) + F.mse_loss(q2, y)
        self.critic_opt.zero_grad()
        loss.backward()
        self.critic_opt.step()
        if self.updates % DELAY == 0:
            action = self.actor(s)
            q = self.critic.q1(s, action)
            actor_loss = -ALPHA / q.abs().mean().detach() * q.mean() + F.mse_loss(action, a)
            self.actor_opt.zero_grad()
            actor_loss.backward()
            self.actor_opt.step()
            self.polyak(self.critic, self.critic_slow)
            self.polyak(self.actor, self.actor_slow)
        return loss


def steps_taken(optimiser):
    return int(next(iter(optimiser.state.values()))["step"])


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def main():
    args = options(__doc__, fast="tensors as data, fused Adam, multi-tensor target update")
    out = claim_stdout()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    data = load(args.data)
    memory = Memory(data, args.fast)
    agent = TD3BC(data["observations"].shape[1], data["actions"].shape[1], args.fast)
    first = {"actor": flat(agent.actor), "critic": flat(agent.critic)}
    loss = torch.tensor(float("nan"))

    def window():
        nonlocal loss
        for _ in range(args.updates):
            loss = agent.update(memory)

    seconds = windows(window, args.repeat)
    total = args.updates * (args.repeat + 1)
    report(
        out, "torch_fast" if args.fast else "torch", "updates/s", args.updates, seconds,
        critic_steps=(steps_taken(agent.critic_opt), total),
        actor_steps=(steps_taken(agent.actor_opt), total // DELAY),
        loss=loss.item(),
        moved={k: (flat(getattr(agent, k)) - v).norm().item() for k, v in first.items()},
        packages=("torch", "numpy"),
        threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
