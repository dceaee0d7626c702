"""Several losses as one: for models whose prediction is a pytree, one loss to a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from jaxloss.contract import NONNEGATIVE, ShapeError, as_pytree, check_loss, check_number, require_broadcastable, shown
from jaxloss.reduce import LossSum, loss_sum

__all__ = ["composite"]


def composite(losses: Any, weights: Any = None) -> Any:
    """The loss Σₖ cₖ·lossₖ(predₖ, targetₖ) on pytrees of predictions and targets.

    losses: a pytree of losses, their settings bound with `Partial`.
    weights: the cₖ ≥ 0, a pytree like `losses`; all 1 if not given. Like the bound settings they are pytree leaves of
        the result: sweep them, learn them.

    The result is called like any loss. Its pred and target have the structure of `losses`; `weights` and `where` are
    None or have it too, each part None or what that head's loss takes. Each head is reduced by itself, over all its
    axes; "none" gives a pytree of elementwise losses. `loss_sum(…).each` reports the heads, weighted, and `.mean` their
    sum; two such sums add exactly, whatever is masked in which head.

    >>> from jaxloss import composite, huber, loss_sum, mse
    >>> loss = composite({"price": huber, "area": mse}, {"price": 1.0, "area": 0.5})
    >>> pred = {"price": jnp.array([3.0, 0.0]), "area": jnp.array([[2.0, 0.0], [0.0, 0.0]])}
    >>> target = {"price": jnp.zeros(2), "area": jnp.zeros((2, 2))}
    >>> float(loss(pred, target))
    1.75
    >>> {name: float(part) for name, part in loss_sum(loss, pred, target).each.items()}
    {'area': 0.5, 'price': 1.25}
    """
    leaves, structure = jax.tree.flatten(losses, is_leaf=callable)
    if not leaves:
        raise ValueError("composite: needs at least one loss")
    for leaf in leaves:
        check_loss(leaf)
    heads = [1.0] * len(leaves) if weights is None else _parts("weights", structure, weights)
    for weight in heads:
        check_number("composite", "the weight of a loss", weight, NONNEGATIVE)
        require_broadcastable("composite", "the weight of a loss", weight, ())
    bound = structure.unflatten([as_pytree(leaf) for leaf in leaves])
    return Partial(_composite, losses=bound, head_weights=structure.unflatten(heads))


def _composite(pred: Any, target: Any, *, reduction: str = "mean", **rest: Any) -> Any:
    def reduce(loss: Callable, head_weight: Any, *arguments: Any, **masks: Any) -> Any:
        return head_weight * loss(*arguments, reduction=reduction, **masks)

    parts = _map_heads(reduce, pred, target, **rest)
    return parts if reduction == "none" else sum(jax.tree.leaves(parts))


def _sums(pred: Any, target: Any, *, reduction: str, **rest: Any) -> LossSum:
    """What `loss_sum` gives for a composite: the pair of each head, as pytrees."""

    def add_up(loss: Callable, head_weight: Any, *arguments: Any, **masks: Any) -> LossSum:
        total, weight = loss_sum(loss, *arguments, reduction=reduction, **masks)
        return LossSum(head_weight * total, weight)

    sums = _map_heads(add_up, pred, target, **rest)
    heads, structure = jax.tree.flatten(sums, is_leaf=lambda value: isinstance(value, LossSum))
    return LossSum(*(structure.unflatten(parts) for parts in zip(*heads, strict=True)))


_composite.sums = _sums  # type: ignore[attr-defined]


def _map_heads(
    function: Callable, pred: Any, target: Any, *, losses: Any, head_weights: Any, axis: Any = None, **rest: Any
) -> Any:
    """Apply the function to each head's loss, weight, prediction and target; an error names the head."""
    masks = {what: rest.pop(what, None) for what in ("weights", "where")}
    if axis is not None:
        raise ValueError(f"composite: axis={shown(axis)} has no meaning over several heads; leave it out")
    for setting in rest:
        raise TypeError(f"composite: unknown setting {setting!r}; bind the settings of its losses with Partial")
    named, structure = jax.tree_util.tree_flatten_with_path(losses, is_leaf=callable)
    columns = [_parts("weights of the losses", structure, head_weights)]
    columns += [_parts(what, structure, tree) for what, tree in (("pred", pred), ("target", target))]
    for what, tree in masks.items():
        columns.append([None] * len(named) if tree is None else _parts(what, structure, tree))
    results = []
    for (path, loss), weight, *arguments, own_weights, own_where in zip(named, *columns, strict=True):
        try:
            results.append(function(loss, weight, *arguments, weights=own_weights, where=own_where))
        except (TypeError, ValueError) as error:
            head = f"head {jax.tree_util.keystr(path)}"
            if type(error) in (TypeError, ValueError, ShapeError):
                raise type(error)(f"{head}: {error}") from None
            error.add_note(head)  # an error of JAX takes other arguments
            raise
    return structure.unflatten(results)


def _parts(what: str, structure: Any, tree: Any) -> list[Any]:
    try:
        return structure.flatten_up_to(tree)
    except (ValueError, TypeError):
        wanted, got = (
            str(one).removeprefix("PyTreeDef(").removesuffix(")") for one in (structure, jax.tree.structure(tree))
        )
        raise ValueError(f"composite: {what} must have the structure of the losses, {wanted}, got {got}") from None
