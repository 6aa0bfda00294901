"""Every method through one battery. A new method is one more line in `METHODS`."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    BATCH,
    NETS,
    SPEC,
    WIDTH,
    at,
    changed,
    close,
    pretrained,
    ring_of,
    rows,
    same,
    seed_of,
    stack,
    without,
)
from jax.extend.core import jaxprs_in_params
from random_keys import recorded

from segue.core import AbstractMethod, Linear, Pretrained
from segue.methods.aca import ACA, SACML, AlignedSAC
from segue.methods.adaptive_bc import REDQBC, AdaptiveBC
from segue.methods.awac import AWAC
from segue.methods.backbone import AbstractBackbone, ActorCritic
from segue.methods.bc import BC
from segue.methods.calql import CalQL
from segue.methods.direct import Direct
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.fql import FQL
from segue.methods.gated import Gated
from segue.methods.ibrl import IBRL, ChoosingTD3
from segue.methods.iql import IQL
from segue.methods.jsrl import JSRL
from segue.methods.off2on import Off2On, SeveralAgents
from segue.methods.opt import OPT, MetaCritic
from segue.methods.pex import PEX
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.q2rl import Q2RL, CloningSAC
from segue.methods.qc import QC
from segue.methods.rebrac import ReBRAC
from segue.methods.resfit import ResFiT
from segue.methods.sac import SAC
from segue.methods.sope import SOPE
from segue.methods.spot import SPOT, BehaviourDensity
from segue.methods.td3 import TD3
from segue.methods.td3bc import TD3BC
from segue.methods.trust_region import EarnedTrustRegion, TrustRegion
from segue.nn.networks import Networks
from segue.replay.chunks import Chunks
from segue.replay.next_actions import NextActionBatch
from segue.replay.returns_to_go import ReturnsBatch
from segue.replay.sampler import Uniform

pytestmark = pytest.mark.slow


class Law(NamedTuple):
    method: AbstractMethod
    learns: str
    """The names of the networks that an update moves; all others pass through."""
    restarts: str = ""
    """The parts that beginning moves."""
    batches: int | type = 1
    uses: str = "key time"
    """What an update depends on besides learner and batch."""
    backbone: AbstractBackbone = TD3(networks=NETS)
    """Whose actor and critics it is given."""
    given: bool = True
    lacks: str = ""
    """The parts that it is not given."""
    chunk: int = 1
    """Actions in a chunk."""
    selects: bool = False
    """Whether each seed chooses among weights by its own state, as behind a gate, where the policy may wait."""


def under(
    backbone: AbstractBackbone, learns: str, uses: str = "key time", fits: str | None = None, **fields: Any
) -> dict[str, Law]:
    """A backbone in the form it takes online, under every fine-tuner; `fits` is what `fit_parts` moves, by default all
    that it learns."""
    name, online = type(backbone).__name__.lower(), backbone.online()
    given = {"uses": uses, "backbone": online} | fields
    restarts = "actor critic"
    laws = {
        f"{name}-direct": Law(Direct(online), f"actor critic {learns}", restarts, **given),
        f"{name}-opt": Law(OPT(online), f"actor critic q_on {learns}", restarts, **given),
        f"{name}-meta": Law(MetaCritic(online), "q_on", "q_on", 2, **given),
    }
    fits = learns if fits is None else fits
    if fits:
        laws[f"{name}-meta-fit"] = Law(MetaCritic(online, fit_parts=True), f"q_on {fits}", "q_on", 2, **given)
    return laws


backbone = TD3(networks=NETS)
meta = functools.partial(MetaCritic, backbone)
spot, iql, rebrac = (
    SPOT(networks=NETS),
    IQL(networks=NETS, decay=4),
    ReBRAC(networks=Networks(width=WIDTH, depth=2, critic_norm=True)),
)
clone, squashed, sac = BC(networks=NETS), BC(networks=NETS, head="tanh-gaussian"), SAC(networks=NETS)
awac, calql = AWAC(networks=NETS), CalQL(networks=NETS, actions=2, target_gap=0.8)
redq = SAC(
    networks=Networks(width=WIDTH, actor_norm=True, critic_norm=True),
    critics=4,
    subset=2,
    delay=2,
    entropy_backup=False,
    policy_reduction="mean",
)
every = changed(redq, delay=1)
ensemble = EnsembleTD3(networks=Networks(width=WIDTH, critic_norm=True), critics=4)
cloning = CloningSAC(networks=NETS, critics=4, subset=2, delay=2, entropy_backup=False)
choosing = ChoosingTD3(networks=Networks(width=WIDTH, critic_norm=True), critics=4)
redq_bc = REDQBC(networks=NETS, critics=4)
off2on = Off2On(networks=NETS, critics=4)
sac_ml, aligned = SACML(networks=NETS), AlignedSAC(networks=NETS)
trust_region = TrustRegion(until=100_000)
"""Half gone at the moment of the laws."""

METHODS = {
    "td3bc": Law(TD3BC(networks=NETS), "actor critic"),
    "td3": Law(
        TD3(networks=Networks(width=WIDTH, actor_norm=True, critic_norm=True, actor_head=1e-3, critic_head=3e-3)),
        "actor critic",
        given=False,
    ),
    "direct": Law(Direct(backbone), "actor critic", "actor critic"),
    "opt": Law(OPT(backbone), "actor critic q_on", "actor critic"),
    "opt-td3bc": Law(OPT(TD3BC(networks=NETS), reset_optimizers=False), "actor critic q_on"),
    "meta": Law(meta(), "q_on", "q_on", 2),
    "meta-first": Law(meta(first_order=True), "q_on", "q_on", 2),
    "meta-uncapped": Law(meta(cap_online_loss=False), "q_on", "q_on", 2),
    "meta-offline": Law(meta(learn_from="offline"), "q_on", "q_on", 2),
    "meta-online": Law(meta(learn_from="online"), "q_on", "q_on", 2),
    "meta-critic": Law(meta(trainee="critic"), "critic", "", 2),
    "prior": Law(BehaviourDensity(width=WIDTH), "behaviour", uses="key"),
    "spot": Law(spot, "actor critic"),
    "iql": Law(iql, "actor critic value", uses="time", backbone=iql),
    "rebrac": Law(rebrac, "actor critic", batches=NextActionBatch, backbone=rebrac),
    "bc": Law(clone, "actor critic"),
    "bc-squashed": Law(squashed, "actor critic", backbone=squashed),
    "sac": Law(sac, "actor critic temperature", uses="key", backbone=sac),
    "awac": Law(awac, "actor critic", uses="key", backbone=awac),
    "calql": Law(calql, "actor critic temperature multiplier", batches=ReturnsBatch, uses="key", backbone=calql),
    "cql": Law(changed(calql, target_gap=None), "actor critic temperature", uses="key", backbone=calql),
    "redq": Law(redq, "actor critic temperature", backbone=redq),
    "appraise-sac": Law(PolicyEvaluation(sac), "critic", "actor critic", uses="key", backbone=sac),
    "appraise-redq": Law(PolicyEvaluation(every, keep_critic=True), "critic", "", uses="key", backbone=every),
    "appraise-fit": Law(
        PolicyEvaluation(sac, fit=True),
        "critic spread temperature",
        "actor critic",
        uses="key",
        backbone=sac,
    ),
    "appraise-td3": Law(PolicyEvaluation(backbone), "critic", "actor critic"),
    "appraise-iql": Law(PolicyEvaluation(iql), "critic value", "actor critic", uses="", backbone=iql),
    "appraise-calql": Law(
        PolicyEvaluation(calql, 0.0),
        "critic multiplier",
        "actor critic",
        batches=ReturnsBatch,
        uses="key",
        backbone=calql,
    ),
    "porl": Law(PORL(sac), "actor critic temperature", "temperature", uses="key", backbone=sac),
    "porl-redq": Law(PORL(redq), "actor critic temperature", "temperature", backbone=redq),
    "porl-region": Law(PORL(redq, trust_region), "actor critic temperature", "temperature", backbone=redq),
    "porl-tied": Law(
        PORL(redq, trust_region), "actor critic temperature", "temperature", backbone=redq, lacks="reference_policy"
    ),
    "jsrl": Law(JSRL(redq), "actor critic temperature", "actor critic temperature reference_policy", backbone=redq),
    "jsrl-guide": Law(
        JSRL(sac),
        "actor critic temperature",
        "actor critic temperature",
        uses="key",
        backbone=sac,
        lacks="reference_policy",
    ),
    "resfit": Law(ResFiT(changed(ensemble, pessimism=0.0), units=WIDTH), "actor critic", "actor", backbone=ensemble),
    "ibrl": Law(IBRL(choosing), "actor critic", "actor critic reference_policy", backbone=choosing),
    "pex": Law(
        PEX(changed(iql, decay=None)),
        "actor critic value",
        "actor critic value reference_policy",
        uses="key",
        backbone=iql,
    ),
    "q2rl": Law(
        Q2RL(cloning),
        "actor critic temperature",
        "actor reference_policy",
        backbone=cloning,
    ),
    "redq-bc": Law(redq_bc, "actor critic", backbone=redq_bc),
    "adaptive-bc": Law(AdaptiveBC(redq_bc, low=-1.0, high=3.0), "actor critic", backbone=redq_bc),
    "agents": Law(
        SeveralAgents(changed(calql, calibrated=False), count=3),
        "actor critic",
        uses="key",
        backbone=calql,
        given=False,
    ),
    "off2on": Law(off2on, "actor critic temperature", uses="key", backbone=off2on),
    "sac-ml": Law(sac_ml, "actor critic temperature baseline", uses="key", backbone=sac_ml),
    "aca": Law(
        ACA(aligned, Linear(1.0, 0.0, 100_000)),
        "actor residual temperature",
        "critic temperature reference_policy",
        uses="key",
        backbone=sac_ml,
    ),
    "sope": Law(SOPE(redq), "actor critic temperature", backbone=redq),
    "sope-critics": Law(SOPE(every).critics_alone(), "critic", uses="key", backbone=every),
    "robust": Law(TD3(networks=NETS, laplace_scale=0.5), "actor critic"),
    "direct-region": Law(
        Direct(backbone, trust_region=trust_region), "actor critic", "actor critic", lacks="reference_policy"
    ),
    "opt-region": Law(
        OPT(backbone, trust_region=trust_region), "actor critic q_on", "actor critic", lacks="reference_policy"
    ),
    "ensemble-td3": Law(ensemble, "actor critic", backbone=ensemble),
    "ensemble-all": Law(changed(ensemble, subset=4), "actor critic", backbone=ensemble),
    "appraise-ensemble": Law(
        PolicyEvaluation(changed(ensemble, delay=1)),
        "critic",
        "actor critic",
        uses="key",
        backbone=changed(ensemble, delay=1),
    ),
    "porl-earned": Law(PORL(ensemble, EarnedTrustRegion()), "actor critic", backbone=ensemble, restarts="trust_radius"),
    "gated": Law(
        Gated(PORL(ensemble, EarnedTrustRegion())),
        "critic learner",
        "actor trust_radius",
        backbone=ensemble,
        selects=True,
    ),
    "qc": Law(QC(networks=NETS, samples=3), "actor critic flow", uses="key", backbone=FQL(networks=NETS), given=False),
    "chunks": Law(
        Direct(FQL(networks=NETS)),
        "actor critic flow",
        "actor critic",
        uses="key",
        backbone=FQL(networks=NETS),
        chunk=3,
    ),
    **under(spot, ""),
    **under(changed(ensemble, delay=1), "", uses="key"),
    **under(iql, "value", uses=""),
    **under(rebrac, ""),
    **under(clone, ""),
    **under(sac, "temperature", uses="key", fits=""),
    **under(awac, "", uses="key"),
    **under(FQL(networks=NETS), "flow", uses="key"),
    **under(calql, "temperature multiplier", uses="key", fits="multiplier"),
}
SEEDS = 2
DUE, NOT_DUE = at(1, 50_000), at(0, 50_000)


class Case:
    """A method, compiled once for all its laws."""

    def __init__(self, law: Law):
        self.law, self.method, self.spec = law, law.method, SPEC.chunked(law.chunk)
        self.given = [
            without(pretrained(seed, law.backbone, self.spec), *law.lacks.split()) if law.given else Pretrained()
            for seed in range(SEEDS)
        ]
        self.learners = [law.method.init(self.spec, given, key=jax.random.key(s)) for s, given in enumerate(self.given)]
        self.batches = [self.batch(s) for s in range(SEEDS)]
        # Jitted, so that Python runs once through the update, and not once more for each law that looks at the program.
        self.one = jax.jit(lambda m, learner, batch, key, clock: m.update(learner, batch, key=key, clock=clock))
        self.several = jax.vmap(self.one, in_axes=(None, 0, 0, 0, None))

    def batch(self, seed: int, terminal: float = 0.3) -> Any:
        if self.law.batches is NextActionBatch:
            found = rows(BATCH, 100 + seed, terminal=terminal)
            return NextActionBatch(*found, rows(BATCH, 200 + seed).action, ~found.terminal & (found.reward > 0))
        if self.law.batches is ReturnsBatch:
            found = rows(BATCH, 100 + seed, terminal=terminal)
            return ReturnsBatch(*found, rows(BATCH, 200 + seed).reward, found.reward > 0)
        if self.law.chunk > 1:
            table, source = jax.tree.map(jnp.asarray, rows(64, 100 + seed, terminal=terminal)), Uniform(BATCH)
            follows = table._replace(obs=jnp.concatenate([table.obs[:1], table.next_obs[:-1]]))
            source = Chunks(source, self.law.chunk)
            return source.draw((), follows, ring_of(rows(2)), key=jax.random.key(seed), clock=DUE)[1]
        parts = [rows(BATCH, 100 + 2 * seed + part, terminal=terminal) for part in range(int(self.law.batches))]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def update(self, learner=None, *, method=None, batch=None, key=0, clock=DUE):
        learner, batch = learner or self.learners[0], batch or self.batches[0]
        return self.one(method or self.method, learner, batch, jax.random.key(key), clock)

    def all_seeds(self):
        return stack(*self.learners), stack(*self.batches), jax.vmap(jax.random.key)(jnp.arange(SEEDS))


@pytest.fixture(scope="module", params=METHODS)
def case(request):
    return Case(METHODS[request.param])


def test_an_update_keeps_tree_shapes_and_dtypes(case):
    learner = jax.eval_shape(lambda learner: learner, case.learners[0])
    after, info = jax.eval_shape(case.one, case.method, learner, case.batches[0], jax.random.key(0), DUE)
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
    assert kind(after) == kind(learner)
    assert all(leaf.shape == () for leaf in info.values())


def test_every_leaf_of_a_learner_is_an_array(case):
    learner = case.method.init(case.spec, case.given[0], key=jax.random.key(0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(learner))


def test_seeds_together_are_seeds_apart(case):
    """To 1e-5: a batched product may sum in another order."""
    together = jax.jit(case.several)(case.method, *case.all_seeds(), DUE)
    for s in range(SEEDS):
        apart = case.update(case.learners[s], batch=case.batches[s], key=s)
        close(seed_of(together, s), apart, rtol=1e-4, atol=1e-5)


def test_randomness_and_time_are_arguments(case):
    """The same key at the same time: the same bits. Another key, or another time: other ones, where they are used."""
    first = case.update()
    other_key, other_time = case.update(key=1), case.update(clock=NOT_DUE)
    assert same(first, case.update())
    assert same(first, other_key) == ("key" not in case.law.uses)
    assert same(first[0], other_time[0]) == ("time" not in case.law.uses)


def test_a_new_float_does_not_recompile_and_is_used(case):
    before = case.update()
    other = jax.tree.map(lambda leaf: 0.9 * leaf if isinstance(leaf, float) else leaf, case.method)
    assert any(isinstance(leaf, float) for leaf in jax.tree.leaves(case.method))
    assert not same(before, case.update(method=other))
    assert case.one._cache_size() == 1


def jaxpr_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from jaxpr_equations(inner)


def traced(case, clock, clock_axis=None):
    update = jax.vmap(case.one, in_axes=(None, 0, 0, 0, clock_axis))
    jaxpr = jax.make_jaxpr(update)(case.method, *case.all_seeds(), clock).jaxpr
    weights = {leaf.shape for leaf in jax.tree.leaves(stack(*case.learners)) if leaf.ndim > 2}
    equations = list(jaxpr_equations(jaxpr))
    chosen = [e for e in equations if e.primitive.name == "select_n" and e.outvars[0].aval.shape in weights]
    return [e for e in equations if e.primitive.name == "cond"], chosen


def test_a_branch_stays_a_branch_under_vmap(case):
    """Nothing selects among weights; a clock of each seed's own would make it so, hence the law can fail."""
    branches, chosen = traced(case, DUE)
    assert branches or not isinstance(case.learners[0], ActorCritic) or case.law.backbone.delay == 1
    assert bool(chosen) == case.law.selects
    _, chosen = traced(case, stack(DUE, NOT_DUE), 0)
    assert chosen or not branches or case.law.backbone.delay == 1


@pytest.mark.parametrize("ruin", [np.inf, -np.inf, np.nan])
def test_an_all_terminal_batch_never_looks_at_what_bootstraps(case, ruin):
    """Not at target networks, nor at the value of the next state: critics move as if those were sound."""
    if not isinstance(case.learners[0], ActorCritic):
        return  # SPOT's prior has no critic
    full = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, ruin), tree)
    ruined = lambda t: t if t.target is None else eqx.tree_at(lambda t: t.target, t, full(t.target))
    sound = case.learners[0]
    parts = [ruined(sound.actor), tuple(map(ruined, sound.critics))]
    broken = eqx.tree_at(lambda a: (a.actor, a.critics), sound, tuple(parts))
    if case.law.backbone.__class__ is IQL:
        value = sound.parts["value"]
        broken = eqx.tree_at(lambda a: a.parts["value"].net, broken, full(value.net))
    batch = case.batch(0, terminal=1.1)
    (a, info_a), (b, info_b) = case.update(sound, batch=batch), case.update(broken, batch=batch)
    moving = lambda agent: [(t.net, t.opt) for t in agent.critics]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moving(b)))
    assert same(moving(a), moving(b))
    if case.law.backbone.__class__ is not IQL:  # its policy listens to slow critics, where the others' does not
        assert same((a.actor.net, info_a), (b.actor.net, info_b))
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moving(case.update(broken)[0])))


def named(networks: Pretrained) -> dict[str, Any]:
    """Every network of `networks` by name."""
    return {"actor": networks.actor, "critic": networks.critic, **networks.parts}


def test_what_a_method_did_not_change_passes_through(case):
    given, learner = case.given[0], case.learners[0]
    unchanged = lambda a, b: jax.tree.structure(a) == jax.tree.structure(b) and same(a, b)
    before, after = named(case.method.release(learner)), named(case.method.release(case.update(learner)[0]))
    for name, state in named(given).items():
        if state is not None:
            assert unchanged(before[name], state) == (name not in case.law.restarts), name
    for name, state in before.items():
        assert same(after[name], state) == (name not in case.law.learns), name


def test_an_update_uses_no_key_twice(case):
    args = (case.method, case.learners[0], case.batches[0], jax.random.key(5), DUE)
    keys = recorded(case.one, *args)
    with jax.debug_key_reuse(True):
        jax.eval_shape(case.one, *args)
    assert keys.reused() == 0
    assert ("key" in case.law.uses) <= bool(keys.drawn)


def test_a_first_state_uses_no_key_twice(case):
    init = lambda given, key: case.method.init(case.spec, given, key=key)
    assert recorded(init, case.given[0], jax.random.key(5)).reused() == 0
    less = without(case.given[0], "q_on", "value", "temperature", "multiplier")._replace(critic=None)
    try:
        keys = recorded(init, less, jax.random.key(5))
    except Exception as error:
        assert "needs a pre-trained" in str(error)  # noqa: PT017 (most methods do not)
        return
    assert keys.reused() == 0


def test_an_action_uses_no_key_twice(case):
    explore = lambda learner, obs, key: case.method.explore(learner, obs, key=key, clock=DUE, episode_step=jnp.int32(0))
    try:
        keys = recorded(explore, case.learners[0], jnp.zeros(SPEC.obs), jax.random.key(5))
    except Exception as error:
        assert "does not act" in str(error)  # noqa: PT017 (SPOT's prior)
        return
    assert keys.reused() == 0
