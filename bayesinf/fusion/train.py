"""How the shipped networks were trained: one function each, from a seed."""

from pathlib import Path

import equinox as eqx
import jax
import optax

from bayesinf.fusion import range_bearing
from bayesinf.programs.simulate import simulate
from bayesinf.training import History, fit
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import forward_kl, on_policy
from bayesinf.transformers_gmm.step import as_method
from bayesinf.types import Key


def flatten(examples):
    """Returns examples of many logs, (log, time, ...), as one pool (log * time, ...)."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), examples)


def schedule(peak: float, num_steps: int) -> optax.GradientTransformation:
    """Returns Adam with a warm-up over 5 % of the steps, a cosine decay and clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(0, peak, num_steps // 20, num_steps, peak / 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def train_range_bearing(
    key: Key,
    *,
    num_chunks: int = 240,
    steps_per_chunk: int = 16,
    num_components: int = 6,
    num_logs: int = 96,
    length: int = 100,
    checkpoint: str | Path | None = None,
) -> tuple[DistributionTransformer, History]:
    """Returns the network of the paper's range-bearing filter, trained on its own rollouts."""
    network_key, valid_key, fit_key = jax.random.split(key, 3)
    model = range_bearing.model()
    frames = range_bearing.empty_frames(length)
    start = range_bearing.initial(num_components)
    draw = jax.vmap(lambda key: simulate(key, model, frames))

    def rollouts(dt, states, frames):
        method = as_method(dt)
        return jax.vmap(lambda s, f: on_policy(method, model, s, f, start))(states, frames)

    def pool(key, dt):
        return flatten(rollouts(dt, *draw(jax.random.split(key, num_logs))))

    held_out = draw(jax.random.split(valid_key, 32))

    def validate(dt):
        return forward_kl(dt, model, flatten(rollouts(dt, *held_out)))

    return fit(
        fit_key,
        DistributionTransformer(network_key, 4, tuple(model.sensors)),
        pool,
        lambda dt, batch: forward_kl(dt, model, batch),
        schedule(2e-3, num_chunks * steps_per_chunk),
        num_chunks=num_chunks,
        steps_per_chunk=steps_per_chunk,
        batch_size=960,
        validate=eqx.filter_jit(validate),
        checkpoint=checkpoint,
    )
