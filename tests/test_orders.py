"""The orders of the rows: every row once, nothing preferred, the same whoever draws them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from support import order_of
from test_fit import data, linear, start

from jaxloss import mse
from jaxloss.train import fit, fit_many
from jaxloss.train.mesh import Placement
from jaxloss.train.order import Layout, Shuffle, draw_orders, words_of

EPOCHS, ROWS = 100_000, 20
SEEDS = [0, 1, 2**32, -1]


def drawn(seed=3, epochs=EPOCHS, shards=1):
    return draw_orders(words_of([seed]), np.arange(epochs, dtype=np.uint32), ROWS, shards)[0]


def uniform(orders):
    """How likely it is that rows fall so unevenly on places, if all orders are equally likely."""
    counts = np.stack([np.bincount(places, minlength=ROWS) for places in orders.T])
    expected = len(orders) / ROWS
    return stats.chi2.sf((ROWS - 1) / ROWS * ((counts - expected) ** 2 / expected).sum(), (ROWS - 1) ** 2)


def test_every_order_is_as_likely():
    orders = drawn()[:, 0]
    assert (np.sort(orders, 1) == np.arange(ROWS)).all()
    assert uniform(orders) > 1e-4
    different = ~np.eye(ROWS, dtype=bool)
    for place in range(ROWS - 1):
        pairs = np.bincount(orders[:, place] * ROWS + orders[:, place + 1], minlength=ROWS**2)
        assert stats.chisquare(pairs.reshape(ROWS, ROWS)[different]).pvalue > 1e-5


def test_epochs_seeds_and_shards_tell_nothing_of_one_another():
    """Where each row of the one order is in the other: all places are as likely."""

    def between(one, other):
        return uniform(np.take_along_axis(np.argsort(one, 1), other, 1))

    two = drawn(shards=2)
    assert between(two[1:, 0], two[:-1, 0]) > 1e-4
    assert between(two[:, 0], two[:, 1]) > 1e-4
    for seed in (2, 2 + 2**16, 3 + 2**32, -3):
        assert between(two[:, 0], drawn(seed)[:, 0]) > 1e-4


def test_numpy_and_jax_draw_what_is_defined():
    layout = Layout.of(23, 8, 2)
    chosen = np.array([[3, 1, -1, 4, 1], [-1, 9, -1, 2, 6], [0, 1, 2, 3, 4], [7, -1, -1, -1, -1]])
    epochs = np.arange(5, 8, dtype=np.uint32)
    for shuffle in (Shuffle.of(layout, SEEDS), Shuffle.of(Layout(1, 5, (2,), 3, True), SEEDS, chosen)):
        np.testing.assert_array_equal(shuffle.draw(epochs), jax.jit(lambda s: s.draw(jnp.asarray(epochs)))(shuffle))
    for run, seed in enumerate(SEEDS):
        for number, epoch in enumerate(epochs.tolist()):
            own = [row for row in chosen[run] if row >= 0]
            batches = shuffle.draw(epochs)[run, number].reshape(-1)
            assert batches[batches >= 0].tolist() == [own[row] for row in order_of(seed, epoch, len(own))]
            for shard, order in enumerate(Shuffle.of(layout, SEEDS).draw(epochs)[run, number].swapaxes(0, 1)):
                assert order[order >= 0].tolist() == order_of(seed, epoch, 12, shard).tolist()
    assert len({tuple(order_of(seed, 0, 12)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("rows", [None, np.array([[*range(40)], [*range(35), *[-1] * 5]])])
def test_a_fit_whose_orders_the_devices_draw_is_the_same(monkeypatch, rows):
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start())
    settings = {"loss": mse, "optimizer": optax.adam(0.05), "epochs": 3, "batch_size": 16}

    def fits():
        many = fit_many(linear, two, data(), seeds=[5, 2**40], rows=rows, **settings)
        return many.params, fit(linear, start(), data(), seed=2**40, **settings).params

    of_numpy = fits()
    monkeypatch.setattr(Placement, "is_host", False)
    for one, other in zip(jax.tree.leaves(of_numpy), jax.tree.leaves(fits()), strict=True):
        np.testing.assert_array_equal(one, other)
