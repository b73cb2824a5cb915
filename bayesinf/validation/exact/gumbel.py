"""Gumbel noise: the largest of logits plus noise is a categorical draw."""

import numpy as np

from bayesinf.validation.exact.draws import arrangements, consume, spend
from bayesinf.validation.exact.uniforms import GUMBEL
from bayesinf.validation.exact.values import UNIFORM, Known, Refused, Uniforms, opaque


def noise(machine, eqn, inputs):
    """The rule of JAX's own Gumbel noise, whatever number of bits it is made of."""
    (keys,) = inputs
    consume(machine, keys)
    shape = eqn.outvars[0].aval.shape
    out = np.zeros((1, *shape), UNIFORM)
    out["b"], out["k"], out["map"] = 1.0, 1.0, GUMBEL
    out["uid"] = machine.worlds.fresh(shape)
    return [Uniforms(out)]


def _logits(machine, x: Uniforms, axis: int) -> np.ndarray:
    """Returns the logits `(W or 1, rows, K)` of Gumbel noise, which is spent.

    Raises:
        Refused: for anything that is not a logit plus noise of its own.
    """
    array = np.moveaxis(x.array, axis, -1)
    array = array.reshape(len(array), -1, array.shape[-1])
    free, logits = array["uid"] >= 0, array["a"]
    standard = (array["map"] == GUMBEL) & (array["b"] == 1) & (array["c"] == 0) & (array["k"] == 1)
    if not np.all(np.where(free, standard, logits == -np.inf)):
        raise Refused("the largest of numbers that are not logits plus Gumbel noise")
    if not np.all(np.isfinite(logits) | (logits == -np.inf)):
        raise Refused("a categorical draw with a logit that is infinite or not a number")
    if not np.all(np.isfinite(logits).any(-1)):
        raise Refused("a categorical draw of which no outcome is possible")
    # Shared noise shows as one uniform in two places of a world; a constant shares with none.
    spend(
        machine, np.where(free, array["uid"], -1 - np.arange(free[0].size).reshape(free.shape[1:]))
    )
    return logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _argmax(machine, eqn, inputs):
    (x,) = inputs
    aval = eqn.outvars[0].aval
    chance = _softmax(_logits(machine, x, int(eqn.params["axes"][0]) + 1))
    chance = np.broadcast_to(chance, (len(machine.worlds), *chance.shape[1:]))
    drawn, _ = machine.worlds.choose(chance.shape[1], lambda t, origin: chance[origin, t])
    return [Known(drawn.reshape(len(drawn), *aval.shape).astype(aval.dtype))]


def _top_k(machine, eqn, inputs):
    """The k largest of logits plus Gumbel noise: k draws without replacement."""
    (x,) = inputs
    values, indices = (v.aval for v in eqn.outvars)
    axis = int(eqn.params.get("axis", -1)) % len(values.shape) + 1
    logits = _logits(machine, x, axis)
    num = eqn.params["k"]
    orders = arrangements(machine, logits.shape[-1], num)
    picked = _softmax(logits)[..., orders]
    left = 1 - np.cumsum(picked, axis=-1) + picked
    with np.errstate(all="ignore"):
        chance = np.prod(np.where(picked > 0, picked / left, 0.0), axis=-1)
    if not np.allclose(chance.sum(-1), 1):
        raise Refused("more draws without replacement than outcomes of positive probability")
    chance = np.broadcast_to(chance, (len(machine.worlds), *chance.shape[1:]))
    drawn, _ = machine.worlds.choose(chance.shape[1], lambda t, origin: chance[origin, t])
    order = np.moveaxis(np.empty((len(drawn), *indices.shape)), axis, -1)
    order = np.moveaxis(orders[drawn].reshape(order.shape), -1, axis)
    return [
        opaque(values.shape, "the largest of noisy logits"),
        Known(order.astype(indices.dtype)),
    ]


RULES = {"argmax": _argmax, "top_k": _top_k}
