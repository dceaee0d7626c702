"""One training step: exact under masks, weights, micro-batches; model state and randomness; bad objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import jaxloss
from jaxloss import LossSum, huber, loss_sum, mse
from jaxloss.train import Batch, TrainState, functional, make_step, penalized, supervised

ROWS, FEATURES = 12, 3


def linear(params, x):
    return x @ params["weight"] + params["bias"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, FEATURES)), jnp.float32)
    target = jnp.asarray(rng.normal(size=ROWS), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.5, 2, ROWS), jnp.float32)
    where = jnp.arange(ROWS) % 5 != 1
    params = {"weight": jnp.asarray(rng.normal(size=FEATURES), jnp.float32), "bias": jnp.zeros(())}
    return params, Batch(x, jnp.where(where, target, jnp.nan), weights, where)


def test_gradient_of_linear_regression_is_the_closed_form(problem):
    params, batch = problem
    x, y = np.asarray(batch.x, np.float64), np.nan_to_num(np.asarray(batch.target, np.float64))
    design = np.column_stack([x, np.ones(ROWS)])
    solution = np.append(np.asarray(params["weight"], np.float64), 0.0)
    expected = 2 / ROWS * design.T @ (design @ solution - y)
    gradient = jax.grad(lambda params: mse(linear(params, batch.x), y))(params)
    np.testing.assert_allclose(np.append(gradient["weight"], gradient["bias"]), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_micro_batches_take_the_full_batch_step(problem, reduction):
    params, batch = problem
    optimizer = optax.sgd(0.1)
    objective = supervised(linear, huber, reduction=reduction)
    states = [
        jax.jit(make_step(objective, optimizer, micro_batches=parts))(TrainState.create(params, optimizer), batch)
        for parts in (1, 4)
    ]
    for whole, parts in zip(*map(jax.tree.leaves, (states[0][0].params, states[1][0].params)), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(*(metrics["loss"].mean for _, metrics in states), rtol=1e-6)


def test_step_moves_against_the_gradient_of_the_reported_mean(problem):
    params, batch = problem
    optimizer = optax.sgd(0.1)
    state, metrics = make_step(supervised(linear, huber), optimizer)(TrainState.create(params, optimizer), batch)

    def mean(params):
        return huber(linear(params, batch.x), batch.target, weights=batch.weights, where=batch.where)

    value, gradient = jax.value_and_grad(mean)(params)
    np.testing.assert_allclose(metrics["loss"].mean, value, rtol=1e-6)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-5), state.params, expected)
    assert int(state.step) == 1


def test_fully_masked_batch_leaves_the_parameters(problem):
    params, batch = problem
    optimizer = optax.sgd(0.1)
    step = make_step(supervised(linear, mse), optimizer)
    state, _ = step(TrainState.create(params, optimizer), batch._replace(where=jnp.zeros(ROWS, bool)))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_learned_loss_setting_through_a_hand_written_objective(problem):
    params, batch = problem
    everything = {"model": params, "loss": {"delta": jnp.array(1.0)}}

    def objective(params, batch):
        pred = linear(params["model"], batch.x)
        return loss_sum(huber, pred, batch.target, where=batch.where, **params["loss"])

    optimizer = optax.sgd(0.1)
    state, _ = jax.jit(make_step(objective, optimizer))(TrainState.create(everything, optimizer), batch)
    assert float(state.params["loss"]["delta"]) != 1.0


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(FEATURES, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(self.norm(x)))[:, 0]


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(1)(x)[:, 0]


def nnx_parts():
    return functional(NnxNet(nnx.Rngs(0)))


def linen_parts():
    model = LinenNet()
    return functional(model, model.init(jax.random.key(0), jnp.ones((2, FEATURES)), train=False))


@pytest.mark.parametrize("parts", [nnx_parts, linen_parts])
def test_model_state_and_randomness(problem, parts):
    apply, params, model_state = parts()
    _, batch = problem
    batch = batch._replace(target=jnp.nan_to_num(batch.target))
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(supervised(apply, mse, stateful=True), optimizer))
    state = TrainState.create(params, optimizer, model_state=model_state)
    first, _ = step(state, batch)
    again, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    other, _ = step(state._replace(key=jax.random.key(1)), batch)
    assert any(
        not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (first.params, other.params)), strict=True)
    ), "dropout must depend on the key"
    means = [leaf for leaf in jax.tree.leaves(first.model_state) if leaf.shape == (FEATURES,)]
    assert any(bool(jnp.any(mean != 0)) for mean in means), "batch statistics must be kept"
    evaluations = [
        apply(first.params, batch.x, model_state=first.model_state, key=jax.random.key(number), train=False)[0]
        for number in (0, 1)
    ]
    np.testing.assert_array_equal(*evaluations)


def compared():
    """An optimizer that applies nothing and keeps what it is told: the value, and what the function gives instead."""

    def update(updates, state, params, *, value, grad, value_fn, **extra):
        again, slope = jax.value_and_grad(value_fn)(params)
        kept = {"value": value, "again": again, "grad": grad, "slope": slope}
        return jax.tree.map(jnp.zeros_like, updates), kept

    def init(params):
        return {"value": 0.0, "again": 0.0, "grad": params, "slope": params}

    return optax.GradientTransformationExtraArgs(init, update)


def dropped(params, x, *, model_state, key, train):
    keep = jax.random.bernoulli(key, 0.5, (len(x),))
    return jnp.where(keep, linear(params, x), 0.0), model_state + 1


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["weighted", "heads", "penalized", "stateful"])
def test_an_optimizer_is_told_the_objective_over_the_whole_batch(problem, kind, parts):
    params, batch = problem
    objective, model_state = supervised(linear, huber, reduction="weighted_mean"), None
    if kind == "heads":
        loss = jaxloss.composite({"near": mse, "far": huber}, {"near": 1.0, "far": 3.0})
        objective = supervised(lambda params, x: dict.fromkeys(("near", "far"), linear(params, x)), loss)
        where = {"near": batch.where, "far": jnp.arange(ROWS) % 3 > 0}
        batch = Batch(batch.x, dict.fromkeys(where, jnp.nan_to_num(batch.target)), None, where)
    if kind == "penalized":
        objective = penalized(objective, lambda params: jnp.sum(params["weight"] ** 2))
    if kind == "stateful":
        objective, model_state = supervised(dropped, huber, stateful=True), jnp.zeros((), jnp.int32)
    optimizer = compared()
    state = TrainState.create(params, optimizer, model_state=model_state)
    state, metrics = jax.jit(make_step(objective, optimizer, micro_batches=parts))(state, batch)
    told = state.opt_state
    value = sum(float(sum_.mean) for name, sum_ in metrics.items() if name != "skipped")
    np.testing.assert_allclose([told["value"], told["again"]], value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), told["slope"], told["grad"])
    assert float(optax.tree.norm(told["grad"])) > 0.1
    assert model_state is None or int(state.model_state) == parts


@pytest.mark.parametrize("parts", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_optimizers_that_ask_for_the_loss_are_as_by_hand(problem, parts):
    params, batch = problem
    contrib = optax.contrib

    def value(params):
        return huber(linear(params, batch.x), batch.target, weights=batch.weights, where=batch.where)

    for optimizer, asks in [
        (optax.lbfgs(), True),
        (optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)), True),
        (optax.apply_if_finite(optax.polyak_sgd(), 3), True),
        (optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(0.5, patience=1)), True),
        (contrib.momo(), True),
        (contrib.mechanize(optax.sgd(0.1)), True),
        (contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), False),
    ]:
        step = jax.jit(make_step(supervised(linear, huber), optimizer, micro_batches=parts))
        state, mine, kept = TrainState.create(params, optimizer), params, optimizer.init(params)
        for _ in range(4):
            state, metrics = step(state, batch)
            assert int(metrics["skipped"]) == 0
            known, grad = jax.value_and_grad(value)(mine)
            more = {"value": known, "grad": grad, "value_fn": value} if asks else {}
            updates, kept = optimizer.update(grad, kept, mine, **more)
            mine = optax.apply_updates(mine, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), state.params, mine)


@pytest.mark.parametrize("guard", [True, "gradient"])
def test_the_guards_agree_and_keep_what_is_finite(problem, guard):
    params, batch = problem
    optimizer = optax.adam(0.1)
    step = jax.jit(make_step(supervised(linear, mse), optimizer, guard=guard))
    state = TrainState.create(params, optimizer)
    bare, _ = make_step(supervised(linear, mse), optimizer, guard=False)(state, batch)
    fine, metrics = step(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fine.params, bare.params)
    assert (int(metrics["skipped"]), int(fine.step)) == (0, 1)
    after, metrics = step(fine, batch._replace(x=batch.x * jnp.inf))
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (fine.params, fine.opt_state))
    assert (int(metrics["skipped"]), int(after.step), float(metrics["loss"].weight)) == (1, 2, 0.0)
    steep = optax.chain(optax.scale(1e38), optax.scale(-1e3))
    over, metrics = make_step(supervised(linear, mse), steep, guard=guard)(TrainState.create(params, steep), batch)
    assert int(metrics["skipped"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(over.params))


def test_functional_of_equal_models_is_equal():
    applies = [functional(nnx.Linear(2, 1, rngs=nnx.Rngs(seed)))[0] for seed in (0, 1)]
    assert applies[0] == applies[1]
    assert hash(applies[0]) == hash(applies[1])


def test_functional_linen_without_state():
    model = linen.Dense(1)
    x = jnp.ones((2, FEATURES))
    variables = model.init(jax.random.key(0), x)
    apply, params = functional(model, variables)
    np.testing.assert_array_equal(apply(params, x), model.apply(variables, x))


def test_bad_parts_are_refused_in_one_line(problem):
    params, batch = problem
    optimizer = optax.sgd(0.1)
    state = TrainState.create(params, optimizer)
    growing = optax.GradientTransformation(optimizer.init, lambda grads, state, params=None: (grads, (state, state)))
    refusals = [
        (lambda: make_step(lambda params, batch: jnp.zeros(()), optimizer)(state, batch), TypeError, "LossSum"),
        (
            lambda: make_step(lambda params, batch: LossSum(jnp.zeros(3), jnp.ones(3)), optimizer)(state, batch),
            TypeError,
            "scalar",
        ),
        (lambda: make_step(supervised(linear, mse), optimizer, micro_batches=5)(state, batch), ValueError, "5"),
        (lambda: supervised(linear, Partial(huber, delta=-1.0)), ValueError, "delta"),
        (lambda: supervised(linear, "mse"), TypeError, "mse"),
        (lambda: make_step(supervised(linear, mse), optax.adam), TypeError, "optax.adam(1e-3)"),
        (lambda: make_step(supervised(linear, mse), growing)(state, batch), TypeError, "structure"),
        (lambda: make_step("net", optimizer), TypeError, "objective must be a function"),
        (lambda: make_step(supervised(linear, mse), optimizer, micro_batches=1.5), TypeError, "micro_batches"),
        (
            lambda: make_step(supervised(linear, mse), optimizer)(state._replace(params={"bias": 1}), batch),
            TypeError,
            "params['bias'] has dtype int32",
        ),
        (lambda: penalized(supervised(linear, mse), 3.0), TypeError, "penalty must be a function"),
        (lambda: supervised(3.0, mse), TypeError, "apply must be a function"),
        (lambda: functional(linear), TypeError, "module"),
        (lambda: functional(linen.Dense(1)), TypeError, "variables"),
        (
            lambda: make_step(supervised(lambda params, x: x[:, :1], mse), optimizer)(state, batch),
            jaxloss.ShapeError,
            "[:, None]",
        ),
    ]
    for refused, error, word in refusals:
        with pytest.raises(error) as told:
            refused()
        assert word in str(told.value)
        assert "\n" not in str(told.value)
