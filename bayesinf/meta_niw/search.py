"""The search for the mode of an episode's posterior: damped Gauss-Newton steps, with halvings.

All of it is in terms of the weights theta and of the dual `S^-1 (theta - loc)`, which every step
gives too: the log prior is `-0.5 dual @ (theta - loc)` up to its constant, and no system is solved.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.meta_niw.conditioned import Spread
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.gauss_newton import condition, linearize
from bayesinf.meta_niw.model import Model

# A step that gains less than this share of what it promised is halved, so often at most.
LEAST_GAIN = 0.1
HALVINGS = 14


def search(
    model: Model, loc: Float[Array, " d"], cov: Spread, episode: Episode, num_steps: int
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Returns the mode, and `inv(cov) (mode - loc)`, or where `num_steps` steps came.

    Levenberg-Marquardt in the metric of the prior: `damping / 2 |step|^2` is added to the loss,
    which makes of N(loc, cov) another Gaussian, narrower and closer to where we are. Without
    damping a step is Gauss-Newton's; it rises and falls with how much of the promised gain came.
    """
    precision = jnp.finfo(loc.dtype).eps

    def go_on(carry):
        *_, count, left = carry
        return (count < num_steps) & left

    def step(carry):
        theta, dual, damping, count, _ = carry
        linear = linearize(model, theta, episode)
        near = (loc + damping * theta) / (1 + damping)
        new = condition(cov.scaled(1 / (1 + damping)), near, theta, linear)
        move = near + new.shift - theta
        turn = (new.dual - dual) / (1 + damping)
        promised = 0.5 * ((linear.score() - dual) @ move + damping * turn @ move)
        share, gain = shorten(model, loc, episode, theta, dual, move, turn, promised)
        theta, dual = theta + share * move, dual + share * turn
        # 2e-5 nats in single precision: less than that a step promises out of rounding alone.
        small = precision ** (2 / 3) + 10 * precision * jnp.abs(dual @ (theta - loc))
        # Done where little is promised, and where a full step met a quadratic: it is at its peak.
        exact = (damping == 0) & (share == 1) & (jnp.abs(gain - promised) < small)
        ratio = gain / jnp.maximum(promised, small)
        less = jnp.where(damping > 0.1, damping / 8, 0)
        more = jnp.maximum(8 * damping, 1)
        damping = jnp.where(ratio > 0.75, less, jnp.where(ratio < 0.25, more, damping))
        return theta, dual, damping, count + 1, (promised > small) & ~exact

    carry = (loc, jnp.zeros_like(loc), jnp.zeros((), loc.dtype), 0, jnp.array(True))
    theta, dual, *_ = jax.lax.while_loop(go_on, step, carry)
    return theta, dual


def shorten(
    model: Model,
    loc: Float[Array, " d"],
    episode: Episode,
    theta: Float[Array, " d"],
    dual: Float[Array, " d"],
    move: Float[Array, " d"],
    turn: Float[Array, " d"],
    promised: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the largest of 1, 1/2, 1/4, ... of a step that keeps its promise in part, and its
    gain in log density; 0 and 0 where none does."""

    def value(share):
        at = theta + share * move
        total = model.log_likelihood(at, episode) - 0.5 * (dual + share * turn) @ (at - loc)
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    here = value(jnp.zeros((), loc.dtype))
    slack = 10 * jnp.finfo(loc.dtype).eps * (1 + jnp.abs(here))

    def fails(there, share):
        enough = there >= here + LEAST_GAIN * share * promised - slack
        return ~(enough | (jnp.isfinite(there) & ~jnp.isfinite(here)))

    def go_on(carry):
        share, there, halvings = carry
        return (halvings < HALVINGS) & fails(there, share)

    def lower(carry):
        share, _, halvings = carry
        return share / 2, value(share / 2), halvings + 1

    one = jnp.ones((), loc.dtype)
    share, there, _ = jax.lax.while_loop(go_on, lower, (one, value(one), 0))
    failed = fails(there, share)
    return jnp.where(failed, 0, share), jnp.where(failed, 0, there - here)
