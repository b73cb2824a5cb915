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
from bayesinf.fusion.simulated_robot import drive, log_uniform
from bayesinf.programs.simulate import simulate
from bayesinf.training import History, fit
from bayesinf.transformers_gmm.loop import as_method
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import compress, forward_kl, on_policy
from bayesinf.types import Key

# Few: with more the network swings from one pool's faults to their reverse, and back.
STEPS_PER_CHUNK = 6
# Components that a filter parts before every update.
NUM_SPLITS = 2


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
    num_chunks: int = 640,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    num_components: int = range_bearing.NUM_COMPONENTS,
    num_logs: int = 32,
    length: int = 100,
    checkpoint: str | Path | None = None,
) -> tuple[DistributionTransformer, History]:
    """Returns the network of the paper's range-bearing filter, trained on its own rollouts."""
    network_key, valid_key, fit_key = jax.random.split(key, 3)
    model = range_bearing.model()
    frames = range_bearing.empty_frames(length)
    start = range_bearing.initial(num_components)
    draw = jax.vmap(lambda key: simulate(key, model, frames))

    def rollouts(dt, states, frames, fresh=None):
        def one(states, frames, fresh):
            return on_policy(as_method(dt), model, states, frames, start, fresh)

        return flatten(jax.vmap(one)(states, frames, fresh))

    def around(key, state):
        """Returns the start, moved to where the state is a draw from it."""
        ahead = state - start.sample(key)
        return GaussianMixture(start.log_weights, start.means + ahead, start.chols)

    def pool(key, dt):
        draw_key, fresh_key = jax.random.split(key)
        states, frames = draw(jax.random.split(draw_key, num_logs))
        keys = jax.random.split(fresh_key, (num_logs, length))
        return rollouts(dt, states, frames, jax.vmap(jax.vmap(around))(keys, states))

    held_out = draw(jax.random.split(valid_key, 24))

    def validate(dt):
        return forward_kl(dt, model, rollouts(dt, *held_out))

    return fit(
        fit_key,
        DistributionTransformer(network_key, 4, tuple(model.sensors), num_splits=NUM_SPLITS),
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
CURRICULUM = (Stage(900, 12, 160, 1e-3), Stage(250, 8, 320, 3e-4))


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
    network = DistributionTransformer(network_key, robot.DIM, ("range",), num_splits=NUM_SPLITS)
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
    # Start and noise differ from log to log; for the loss, which only reads, any will do.
    model = robot.model(robot.known_start(np.zeros(3)))

    def draw(key, num_logs):
        drive_key, start_key, noise_key = jax.random.split(key, 3)
        keys = jax.random.split(drive_key, num_logs)
        drives = jax.vmap(lambda key: drive(key, stage.length))(keys)
        starts = jax.vmap(random_start)(jax.random.split(start_key, num_logs), drives.start)
        noises = jax.vmap(guessed)(jax.random.split(noise_key, num_logs), drives.noise)
        return drives, starts, noises

    def rollouts(dt, drives, starts, noises, fresh=None):
        def one(drive, start, noise, fresh):
            known = robot.model(start, noise)
            return on_policy(as_method(dt), known, drive.states, drive.frames, start, fresh)

        return flatten(jax.vmap(one)(drives, starts, noises, fresh))

    def pool(key, dt):
        draw_key, fresh_key = jax.random.split(key)
        drives, starts, noises = draw(draw_key, stage.num_logs)
        keys = jax.random.split(fresh_key, (stage.num_logs, stage.length))
        fresh = jax.vmap(jax.vmap(random_start))(keys, drives.states[..., :3])
        return rollouts(dt, drives, starts, noises, fresh)

    # A filter that tracks is far below these ceilings. One that does not counts little: else the
    # network learns to distrust all readings, which helps the lost and loses the others.
    def loss(dt, batch):
        return forward_kl(dt, model, batch, 0.0) + _position_loss(dt, model, batch, 2.0)

    held_out = draw(valid_key, 12)
    return fit(
        fit_key,
        network,
        pool,
        loss,
        schedule(stage.peak, stage.num_chunks * STEPS_PER_CHUNK),
        num_chunks=stage.num_chunks,
        steps_per_chunk=STEPS_PER_CHUNK,
        batch_size=256,
        validate=lambda dt: loss(dt, rollouts(dt, *held_out)),
        checkpoint=checkpoint,
    )


def guessed(key: Key, noise: robot.Noise) -> robot.Noise:
    """Returns the noise as a fit to some ranges may find it, within a factor of 2."""
    draws = jnp.exp(0.5 * jax.random.normal(key, (3,)))
    heading, along, jitter = draws * jnp.stack([noise.heading, noise.along, noise.jitter])
    return noise._replace(heading=heading, along=along, jitter=jitter)


def random_start(key: Key, pose: Float[Array, "3"], num_components: int = 4) -> GaussianMixture:
    """Returns what a filter may know at first; the true pose is a draw from it.

    Most logs start at a known pose. The others start with components at any headings, for half of
    them about one place, for half at places of their own metres apart. A known start has any number
    of components, the other slots are empty, so that the network serves any.
    """
    known_key, choice_key, place_key, count_key = jax.random.split(key, 4)
    sd = jnp.array([0.1, 0.1, 0.03])
    known = robot.known_start(pose + sd * jax.random.normal(known_key, (3,)), None, num_components)
    alive = jnp.arange(num_components) < jax.random.randint(count_key, (), 1, num_components + 1)
    weights = jax.nn.log_softmax(jnp.where(alive, known.log_weights, -jnp.inf))
    known = GaussianMixture(weights, known.means, known.chols)
    lost = _lost(place_key, pose, num_components)
    choice = jax.random.bernoulli(choice_key, 0.6)
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), known, lost)


def _lost(key: Key, pose: Float[Array, "3"], num_components: int) -> GaussianMixture:
    """Returns equally likely components, of the first of which the pose is a draw.

    The network treats all components alike, so it does not matter which one that is.
    """
    keys = jax.random.split(key, 6)
    apart = log_uniform(keys[0], 0.5, 15.0)
    single = jax.random.bernoulli(keys[1])
    within = jnp.where(single, jnp.minimum(apart, 8.0), apart * log_uniform(keys[2], 0.15, 0.8))
    spread = jnp.where(single, 0, apart)
    offsets = spread * jax.random.normal(keys[3], (num_components, 2))
    sds = jnp.array([0, 0, np.pi / num_components, *robot.CALIBRATION_SD]).at[:2].set(within)
    turns = 2 * np.pi * jnp.arange(num_components) / num_components
    # Where each turn lies beside each place is left to chance.
    turns = jnp.concatenate([turns[:1], jax.random.permutation(keys[4], turns[1:])])
    draw = sds[:3] * jax.random.normal(keys[5], (3,))
    places = pose[:2] + draw[:2] + offsets - offsets[0]
    headings = pose[2] + draw[2] + turns
    # The truth's own turn of the circle counts, so headings lie within half a turn of it.
    headings = pose[2] + (headings - pose[2] + np.pi) % (2 * np.pi) - np.pi
    calibration = jnp.array([0.0, 0.0, robot.Noise().log_range])
    calibration = jnp.broadcast_to(calibration, (num_components, 3))
    means = jnp.concatenate([places, headings[:, None], calibration], axis=1)
    chols = jnp.broadcast_to(jnp.diag(sds), (num_components, sds.size, sds.size))
    return GaussianMixture(jnp.full(num_components, -np.log(num_components)), means, chols)


def _position_loss(dt, model, batch, ceiling) -> Float[Array, ""]:
    """Returns the mean negative log density of the true position, which is what gets scored."""

    def one(example):
        posterior = dt(model, example.prior, example.readings).marginal([0, 1])
        return -posterior.log_prob(example.state[:2])

    return jnp.mean(compress(jax.vmap(one)(batch), ceiling))
