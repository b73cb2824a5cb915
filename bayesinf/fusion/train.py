"""How the shipped networks were trained: one function each, from a seed."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.fusion import range_bearing, robot
from bayesinf.fusion.simulated_robot import drive
from bayesinf.programs.simulate import simulate
from bayesinf.training import History, fit
from bayesinf.transformers_gmm.loop import as_method
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import compress, forward_kl, on_policy
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
    num_components: int = range_bearing.NUM_COMPONENTS,
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


class Stage(NamedTuple):
    """One stage of a curriculum.

    Attributes:
        num_chunks: chunks of training.
        num_logs, length: simulated logs a chunk, and ranges in each.
        peak: the highest learning rate.
    """

    num_chunks: int
    num_logs: int
    length: int
    peak: float


# A filter that is lost teaches little, so short logs come first; long ones then teach what the
# belief of a long run looks like.
CURRICULUM = (Stage(260, 32, 160, 1.5e-3), Stage(130, 20, 320, 7e-4))


def train_robot(
    key: Key,
    *,
    curriculum: tuple[Stage, ...] = CURRICULUM,
    checkpoint: str | Path | None = None,
) -> tuple[DistributionTransformer, History]:
    """Returns the network that fuses a robot's odometry and ranges, trained on simulated logs.

    The history is that of the last stage.
    """
    network_key, *stage_keys = jax.random.split(key, 1 + len(curriculum))
    network = DistributionTransformer(network_key, robot.DIM, ("range",))
    history = None
    for number, (stage_key, stage) in enumerate(zip(stage_keys, curriculum, strict=True)):
        path = None if checkpoint is None else Path(f"{checkpoint}.{number}")
        network, history = _train_stage(stage_key, network, stage, path)
    if history is None:
        raise ValueError("curriculum: no stage came, at least one was expected")
    return network, history


def _train_stage(
    key: Key, network: DistributionTransformer, stage: Stage, checkpoint: Path | None
) -> tuple[DistributionTransformer, History]:
    valid_key, fit_key = jax.random.split(key)
    # The start differs from log to log, so the model's own is never used.
    model = robot.model(robot.known_start(np.zeros(3)))

    def draw(key, num_logs):
        drive_key, start_key = jax.random.split(key)
        keys = jax.random.split(drive_key, num_logs)
        drives = jax.vmap(lambda key: drive(key, stage.length))(keys)
        starts = jax.vmap(random_start)(jax.random.split(start_key, num_logs), drives.start)
        return drives, starts

    def rollouts(dt, drives, starts):
        def one(drive, start):
            return on_policy(as_method(dt), model, drive.states, drive.frames, start)

        return flatten(jax.vmap(one)(drives, starts))

    def loss(dt, batch):
        return forward_kl(dt, model, batch, 8.0) + _position_loss(dt, model, batch)

    held_out = draw(valid_key, 16)
    steps_per_chunk = 16
    return fit(
        fit_key,
        network,
        lambda key, dt: rollouts(dt, *draw(key, stage.num_logs)),
        loss,
        schedule(stage.peak, stage.num_chunks * steps_per_chunk),
        num_chunks=stage.num_chunks,
        steps_per_chunk=steps_per_chunk,
        batch_size=384,
        validate=lambda dt: loss(dt, rollouts(dt, *held_out)),
        checkpoint=checkpoint,
    )


def random_start(key: Key, pose: Float[Array, "3"], num_components: int = 10) -> GaussianMixture:
    """Returns what a filter may know at first: the pose, or a place within metres and no heading.

    Half of the logs start known, the others with evenly spaced headings about a place whose spread
    is drawn between half a metre and 8 m. The true pose is a draw from what is returned. A known
    start has any number of components, the other slots are empty, so that the network serves any.
    """
    known_key, choice_key, spread_key, place_key, turn_key, count_key = jax.random.split(key, 6)
    sd = jnp.array([0.1, 0.1, 0.03])
    known = robot.known_start(pose + sd * jax.random.normal(known_key, (3,)), None, num_components)
    alive = jnp.arange(num_components) < jax.random.randint(count_key, (), 1, num_components + 1)
    weights = jax.nn.log_softmax(jnp.where(alive, known.log_weights, -jnp.inf))
    known = GaussianMixture(weights, known.means, known.chols)
    scale = jnp.exp(jax.random.uniform(spread_key, minval=np.log(0.5), maxval=np.log(8.0)))
    place = pose[:2] + scale * jax.random.normal(place_key, (2,))
    turns = 2 * np.pi * jnp.arange(num_components) / num_components
    headings = pose[2] + 2 * np.pi * (jax.random.uniform(turn_key) - 0.5) + turns
    # The truth's own turn of the circle counts, so headings lie within half a turn of it.
    headings = pose[2] + (headings - pose[2] + np.pi) % (2 * np.pi) - np.pi
    means = jnp.concatenate(
        [
            jnp.broadcast_to(place, (num_components, 2)),
            headings[:, None],
            jnp.broadcast_to(known.means.mean(0)[3:], (num_components, 3)),
        ],
        axis=1,
    )
    sds = jnp.array([0, 0, np.pi / num_components, *robot.CALIBRATION_SD]).at[:2].set(scale)
    chols = jnp.broadcast_to(jnp.diag(sds), known.chols.shape)
    unknown = GaussianMixture(jnp.full(num_components, -np.log(num_components)), means, chols)
    choice = jax.random.bernoulli(choice_key)
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), known, unknown)


def _position_loss(dt, model, batch) -> Float[Array, ""]:
    """Returns the mean negative log density of the true position, which is what gets scored."""

    def one(example):
        posterior = dt(model, example.prior, example.readings).marginal([0, 1])
        return -posterior.log_prob(example.state[:2])

    return jnp.mean(compress(jax.vmap(one)(batch), 6.0))
