"""Draws of a state-space model: the states and the readings of a log."""

import jax
from jax import Array
from jaxtyping import Float

from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.types import Key


def simulate(key: Key, model: StateSpace, frames: Frame) -> tuple[Float[Array, "t d"], Frame]:
    """Returns the states at every frame and the frames with their readings' values drawn.

    `frames` gives times, inputs, contexts and masks, with a leading time axis; its values are
    replaced.

    Law: preserves; an exact draw from the joint law of states and readings.
    """
    start_key, scan_key = jax.random.split(key)
    length = jax.tree.leaves(frames)[0].shape[0]

    def move_and_read(state, step):
        frame, key = step
        noise_key, *sensor_keys = jax.random.split(key, 1 + len(frame.readings))
        noise = jax.random.normal(noise_key, (model.dynamics.noise_size,), state.dtype)
        state = model.dynamics(state, noise, frame.elapsed, frame.input)
        readings = {
            name: _draw(sensor_key, model.sensors[name], state, reading)
            for sensor_key, (name, reading) in zip(sensor_keys, frame.readings.items(), strict=True)
        }
        return state, (state, frame._replace(readings=readings))

    start = model.initial.sample(start_key)
    keys = jax.random.split(scan_key, length)
    return jax.lax.scan(move_and_read, start, (frames, keys))[1]


def _draw(key, sensor, state, reading):
    def one(key, context, value):
        return sensor(state, context).sample(key).astype(value.dtype)

    keys = jax.random.split(key, reading.mask.shape[0])
    return reading._replace(value=jax.vmap(one)(keys, reading.context, reading.value))
