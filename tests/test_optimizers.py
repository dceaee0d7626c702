"""Optimizers of every kind against loops written by hand with optax, validated at the parameters their authors mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import close
from test_fit import FEATURES, data

from jaxloss import mse
from jaxloss.train import Batch, TrainState, average_params, fit, fit_many, make_step, penalized, supervised
from jaxloss.train.evaluation import evaluated_params

EPOCHS = 8
contrib = optax.contrib


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def start(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in": (FEATURES, 4), "out": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def loss_at(params, rows):
    return mse(net(params, rows[0]), rows[1])


def schedule_free(params, state):
    return contrib.schedule_free_eval_params(state, params)


def itself(params, state):
    return params


def adam_with_rate(learning_rate):
    return optax.adam(learning_rate)


PARTS = {"in": optax.adam(0.05), "out": optax.sgd(0.1)}
NAMES = {"in": "in", "out": "out"}
OPTIMIZERS = {
    "schedule-free AdamW": (contrib.schedule_free_adamw(0.05), schedule_free),
    "schedule-free SGD": (contrib.schedule_free_sgd(0.3), schedule_free),
    "schedule-free in a chain": (
        optax.chain(optax.clip_by_global_norm(1.0), contrib.schedule_free_adamw(0.05)),
        lambda params, state: schedule_free(params, state[1]),
    ),
    "MultiSteps": (optax.MultiSteps(optax.adam(0.05), 3), itself),
    "SAM": (contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2), itself),
    "Muon": (contrib.muon(0.05), itself),
    "L-BFGS": (optax.lbfgs(), itself),
    "inject_hyperparams": (
        optax.inject_hyperparams(adam_with_rate)(optax.cosine_decay_schedule(0.1, EPOCHS)), itself
    ),
    "masked decay": (optax.adamw(0.05, weight_decay=0.1, mask={"in": True, "out": False}), itself),
    "multi_transform": (optax.multi_transform(PARTS, NAMES), itself),
}  # fmt: skip
SLOW = ("schedule-free AdamW", "schedule-free SGD", "Muon")  # which are taken as others of the table are
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OPTIMIZERS]


@pytest.mark.parametrize("name", EACH)
def test_the_loop_written_by_hand(name):
    optimizer, evaluate = OPTIMIZERS[name]
    rows, held_out = data(), data(seed=5)
    more = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss_at)(params, rows)
        known = {"value": value, "grad": grad, "value_fn": lambda params: loss_at(params, rows)}
        updates, state = more.update(grad, state, params, **({} if name == "SAM" else known))
        return optax.apply_updates(params, updates), state

    params, state, curve, seen = start(), optimizer.init(start()), [], []
    for _ in range(EPOCHS):
        params, state = step(params, state)
        seen.append(evaluate(params, state))
        curve.append(float(loss_at(seen[-1], held_out)))
    settings = {"loss": mse, "optimizer": optimizer, "epochs": EPOCHS}
    result = fit(net, start(), rows, validation=held_out, **settings)
    np.testing.assert_allclose(result.history["validation_loss"], curve, rtol=1e-4)
    close(result.params, seen[int(np.argmin(curve))], rtol=1e-3, atol=1e-5)
    close(result.state.params, params, rtol=1e-3, atol=1e-5)
    if evaluate is not itself:
        close(fit(net, start(), rows, **settings).params, seen[-1], rtol=1e-3, atol=1e-5)


def test_lookahead_is_evaluated_at_its_slow_parameters():
    optimizer = optax.lookahead(optax.adam(0.05), sync_period=3, slow_step_size=0.5)
    rows, held_out = data(), data(seed=5)
    pair = optax.LookaheadParams.init_synced(start())
    mine, state, curve = pair, optimizer.init(pair), []
    for _ in range(EPOCHS):
        updates, state = optimizer.update(jax.grad(loss_at)(mine.fast, rows), state, mine)
        mine = optax.apply_updates(mine, updates)
        curve.append(float(loss_at(mine.slow, held_out)))
    settings = {"loss": mse, "optimizer": optimizer, "epochs": EPOCHS}
    result = fit(net, pair, rows, validation=held_out, **settings)
    np.testing.assert_allclose(result.history["validation_loss"], curve, rtol=1e-4)
    close(fit(net, pair, rows, **settings).params, mine.slow, rtol=1e-4, atol=1e-6)
    close(tuple(result.state.params), tuple(mine), rtol=1e-4, atol=1e-6)


def test_many_members_of_schedule_free_are_each_its_own():
    optimizer = contrib.schedule_free_adamw(0.05)
    settings = {"loss": mse, "optimizer": optimizer, "epochs": EPOCHS, "batch_size": 16}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(0), start(1))
    many = fit_many(net, stacked, data(), **settings)
    for member in (0, 1):
        alone = fit(net, start(member), data(), seed=member, **settings)
        mine = jax.tree.map(lambda leaf, member=member: leaf[member], many.params)
        close(mine, alone.params, rtol=1e-4, atol=1e-6)


def test_a_state_of_ones_own_says_what_is_evaluated():
    class Negated(tuple):
        def evaluated(self, params):
            return jax.tree.map(jnp.negative, params)

    params = start()
    close(evaluated_params(params, (optax.EmptyState(), Negated())), jax.tree.map(jnp.negative, params))
    close(evaluated_params(params, optax.adam(0.1).init(params)), params)


@pytest.mark.parametrize("pair", [True, False])
def test_a_penalty_counts_at_the_parameters_that_are_differentiated(pair):
    rows = data()
    optimizer = optax.lookahead(optax.sgd(0.1), 2, 0.5) if pair else optax.sgd(0.1)
    params = optax.LookaheadParams.init_synced(start()) if pair else start()

    def penalty(params):
        return jnp.sum(params["in"] ** 2)

    step = make_step(penalized(supervised(net, mse), penalty), optimizer)
    state, _ = step(TrainState.create(params, optimizer), Batch(*rows))
    grad = jax.grad(lambda params: loss_at(params, rows) + penalty(params))(start())
    updates, _ = optimizer.update(grad, optimizer.init(params), params)
    close(jax.tree.leaves(state.params), jax.tree.leaves(optax.apply_updates(params, updates)), rtol=1e-5)


def test_an_average_over_skipped_steps_and_a_bad_decay():
    x, target = data()
    x[3] = 3e38
    optimizer = average_params(optax.sgd(0.05), 0.5)
    with pytest.warns(UserWarning, match="2 updates were skipped"):
        result = fit(net, start(), (x, target), loss=lambda pred, target, **more: mse(pred * 1e30, target, **more),
                     optimizer=optimizer, epochs=1, batch_size=25, max_skipped=9)  # fmt: skip
    close(result.params, start())
    for decay in (1.0, -0.1, "a"):
        with pytest.raises(ValueError, match="average_params: decay"):
            average_params(optax.sgd(0.1), decay)
