"""One process: what `give_first` lets its user do. tests/test_several_processes.py has two."""

import jax
import numpy as np
import pytest

from audioldm2_jax.runtime import hosts

TREE = {"a": jax.numpy.arange(3.0), "b": np.ones((2, 2), np.float32), "c": [np.int32(4)]}


def test_each_leaf_is_read_once_and_in_order():
    read = hosts.give_first(
        TREE, lambda tree: [(leaf.shape, leaf.dtype, np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    )
    for (shape, dtype, value), leaf in zip(read, jax.tree.leaves(TREE), strict=True):
        assert shape == np.shape(leaf) and dtype == leaf.dtype
        np.testing.assert_array_equal(value, leaf)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 1, 2), (0, 1)])
def test_another_order_is_an_error_and_not_a_job_that_hangs(order):
    def use(tree):
        leaves = jax.tree.leaves(tree)
        return [np.asarray(leaves[number]) for number in order]

    with pytest.raises(RuntimeError, match=r"next|2 of 3 leaves"):
        hosts.give_first(TREE, use)
