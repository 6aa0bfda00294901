"""The recorder of random keys finds what it is for. The laws that use it are in test_laws and test_replay."""

import jax
from random_keys import recorded


def test_a_key_that_is_split_and_folded_is_found():
    def wrong(key):
        first, second = jax.random.split(key)
        return jax.random.normal(first), jax.random.normal(second), jax.random.normal(jax.random.fold_in(key, 1))

    def right(key):
        return [jax.random.normal(k) for k in jax.random.split(key, 3)]

    assert recorded(wrong, jax.random.key(0)).reused() == 1
    assert recorded(right, jax.random.key(0)).reused() == 0


def test_a_key_that_is_drawn_from_and_split_is_found():
    wrong = lambda key: (jax.random.normal(key), jax.random.normal(jax.random.split(key)[0]))
    branch = lambda key: jax.lax.cond(key_sum(key) > 0, wrong, wrong, key)
    key_sum = lambda key: jax.random.key_data(key).sum()
    assert recorded(wrong, jax.random.key(0)).reused() == 1
    assert recorded(branch, jax.random.key(0)).reused() == 1
