"""The methods that localise a robot, all on the same model: network, filters, dead reckoning."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from scipy.optimize import minimize
from tqdm import tqdm

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.reduction import reduce
from bayesinf.fusion import particles, robot
from bayesinf.fusion.log import Log
from bayesinf.kalman import extended, gaussian_sum
from bayesinf.kalman.filter import Info, Method
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.transformers_gmm import load
from bayesinf.types import Key

# An unknown start is wide for this many ranges, then narrows to a fixed number of components.
WIDE_RANGES, NARROW, FEW = 24, 48, 8
# The ranges that are filtered in one call.
BLOCK = 256
NUM_PARTICLES, NUM_START_PARTICLES, NUM_FIT_PARTICLES = 5_000, 100_000, 1_000
WIDE_PARTICLE_RANGES = 300
# Noise is fitted on the first quarter of the ranges: the extended Kalman filter's by a search of so
# many evaluations, and that of the others from where it ends.
FIT_SHARE, EKF_EVALUATIONS, EVALUATIONS = 0.25, 120, 25
FIRST = "reading the log"


class Track(NamedTuple):
    """What one method says after every range of a log.

    Attributes:
        log_weights, means, chols: the mixture of the position (m).
        log_scores: log density of each range given the past, NaN where the range is missing.
        us_per_update: microseconds for one frame, compiled before the clock starts.
    """

    log_weights: Float[np.ndarray, "t k"]
    means: Float[np.ndarray, "t k 2"]
    chols: Float[np.ndarray, "t k 2 2"]
    log_scores: Float[np.ndarray, " t"]
    us_per_update: float


class Sizes(NamedTuple):
    """How many components a filter goes on with.

    Attributes:
        narrow: after the first `WIDE_RANGES` ranges of a start that is wider.
        few: once place and heading are found.
    """

    narrow: int
    few: int


def predictive(model: StateSpace, belief: GaussianMixture, frame: Frame) -> Float[Array, ""]:
    """Returns the log density of a frame's range given the belief before it, NaN if missing.

    A proper density, the same rule for every filter on mixtures: in each component the range is
    Gaussian with the mean and variance that cubature points give it.
    """
    reading = frame.readings["range"]
    beacon, value = reading.context[0], reading.value[0]

    def one(mean, chol):
        dim = mean.size
        points = np.sqrt(dim) * np.concatenate([np.eye(dim), -np.eye(dim)])
        loc, scale = jax.vmap(lambda z: robot.range_moments(mean + chol @ z, beacon))(
            jnp.asarray(points, mean.dtype)
        )
        centre = jnp.mean(loc)
        variance = jnp.var(loc) + jnp.mean(scale**2)
        return -0.5 * ((value - centre) ** 2 / variance + jnp.log(2 * np.pi * variance))

    log_density = logsumexp(belief.log_weights + jax.vmap(one)(belief.means, belief.chols))
    return jnp.where(reading.mask[0], log_density, jnp.nan)


def follow(method: Method, model: StateSpace, frames: Frame, belief: GaussianMixture):
    """Returns the last belief, and position mixture and log score after every frame."""

    def body(belief, frame):
        prior = method.predict(model, belief, frame)
        posterior, _ = method.update(model, prior, frame.readings)
        place = (posterior.log_weights, posterior.means[:, :2], posterior.chols[:, :2, :2])
        return posterior, (*place, predictive(model, prior, frame))

    return jax.lax.scan(body, belief, frames)


def timed(function: Callable, *arguments):
    """Returns the function's result and the seconds it took, compilation not counted."""
    compiled = eqx.filter_jit(function).lower(*arguments).compile()
    begin = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, time.perf_counter() - begin


def filter_track(
    method: Method, model: StateSpace, frames: Frame, belief: GaussianMixture, sizes: Sizes
) -> Track:
    """Returns the track of a filter on mixtures, which goes on with fewer components as it learns.

    The log is run in blocks of one shape, so that each number of components compiles once.
    """
    total = frames.elapsed.shape[0]
    pieces, seconds, compiled, begin = [], 0.0, {}, 0
    while begin < total:
        wide = belief.num_components > sizes.narrow
        length = WIDE_RANGES if wide else BLOCK
        block = _padded(_cut(frames, begin, begin + length), length)
        if belief.num_components not in compiled:
            program = eqx.filter_jit(partial(follow, method)).lower(model, block, belief)
            compiled[belief.num_components] = program.compile()
        start = time.perf_counter()
        belief, piece = jax.block_until_ready(compiled[belief.num_components](model, block, belief))
        seconds += time.perf_counter() - start
        pieces.append([np.asarray(leaf)[: total - begin] for leaf in piece])
        begin += length
        if wide:
            belief = _reduced(belief, sizes.narrow, model.angles)
        elif belief.num_components > sizes.few and concentrated(belief):
            belief = _reduced(belief, sizes.few, model.angles)
    width = max(piece[0].shape[1] for piece in pieces)
    leaves = zip(*(_pad(piece, width) for piece in pieces), strict=True)
    log_weights, means, chols, log_scores = map(np.concatenate, leaves)
    return Track(log_weights, means, chols, log_scores, 1e6 * seconds / total)


_reduced = eqx.filter_jit(reduce)


def concentrated(belief: GaussianMixture) -> bool:
    """Returns whether the belief has found place (within metres) and heading of the robot."""
    weights = jnp.exp(belief.log_weights)
    heading = jnp.abs(weights @ jnp.exp(1j * belief.means[:, robot.HEADING]))
    spread = jnp.linalg.norm(belief.marginal([0, 1]).chol())
    return bool((heading > 0.95) & (spread < 2.0))


def _padded(frames: Frame, length: int) -> Frame:
    """Returns the frames with empty ones behind, in which nothing moves and nothing is read."""
    missing = length - frames.elapsed.shape[0]

    def repeat(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])

    def zeros(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

    readings = {
        name: jax.tree.map(repeat, reading)._replace(mask=zeros(reading.mask))
        for name, reading in frames.readings.items()
    }
    return Frame(zeros(frames.elapsed), jax.tree.map(zeros, frames.input), readings)


def _pad(piece, width: int):
    """Fills a piece with empty components, so that pieces of different widths join."""
    log_weights, means, chols, log_scores = map(np.asarray, piece)
    missing = width - log_weights.shape[1]

    def fill(leaf, value):
        return np.concatenate(
            [leaf, np.broadcast_to(value, (len(leaf), missing, *leaf.shape[2:]))], 1
        )

    return fill(log_weights, -np.inf), fill(means, 0.0), fill(chols, np.eye(2)), log_scores


# Noise by a method's own innovation likelihood


def fitted(vector: Float[Array, "4"]) -> robot.Noise:
    """Returns the noise with these logs of (range sd, heading, along, jitter), and held there."""
    log_range, heading, along, jitter = vector
    return robot.Noise(jnp.exp(heading), jnp.exp(along), jnp.exp(jitter), log_range, 1e-3, 1e-6)


START = np.log([0.4, 0.003, 0.05, 0.02])
BOUNDS = [
    (np.log(low), np.log(high))
    for low, high in ((0.03, 3.0), (1e-4, 0.05), (1e-3, 0.5), (1e-4, 0.2))
]


def fit_noise(
    log_likelihood: Callable[[Frame, Float[Array, "4"]], Float[Array, ""]],
    frames: Frame,
    start: Float[np.ndarray, "4"],
    evaluations: int,
) -> Float[np.ndarray, "4"]:
    """Returns the logs of the noise that maximise a log likelihood, by Nelder and Mead's search.

    A noise under which the filter breaks down counts as impossible.
    """
    compiled = eqx.filter_jit(log_likelihood)
    corners = start + np.concatenate([np.zeros((1, 4)), 0.5 * np.eye(4)])
    low, high = np.transpose(BOUNDS)

    def objective(vector):
        value = float(compiled(frames, jnp.asarray(vector, jnp.result_type(float))))
        return -value if np.isfinite(value) else 1e12

    return minimize(
        objective,
        start,
        method="Nelder-Mead",
        bounds=BOUNDS,
        options={"maxfev": evaluations, "initial_simplex": np.clip(corners, low, high)},
    ).x


class Setting(NamedTuple):
    """What every method gets: the log's frames, and where the robot may start.

    Attributes:
        frames: one for every range.
        start: from the noise to the belief before the first frame.
        sizes: components to go on with.
        fit_frames: the ranges that noise is fitted on.
        fit_start: from the noise to the belief before the first of those.
    """

    frames: Frame
    start: Callable[[robot.Noise], GaussianMixture]
    sizes: Sizes
    fit_frames: Frame
    fit_start: Callable[[robot.Noise], GaussianMixture]


def setting(log: Log, start_pose: Float[np.ndarray, "3"] | None) -> Setting:
    """Returns the setting of a log that starts at a known pose, or anywhere (None)."""
    frames = robot.frames(log)
    quarter = max(int(FIT_SHARE * log.range_t.size), 1)
    if start_pose is not None:
        start = partial(robot.known_start, start_pose, num_components=FEW)
        return Setting(frames, start, Sizes(FEW, FEW), _cut(frames, 0, quarter), start)

    # Noise is fitted from where a Gaussian-sum filter stands once the wide start has narrowed.
    start = partial(robot.unknown_start, log)
    wide = min(WIDE_RANGES, quarter // 2)
    rough = fitted(jnp.asarray(START))
    belief = start(rough)
    begin = _cut(frames, 0, wide)
    (belief, _), _ = timed(
        partial(follow, gaussian_sum()), robot.model(belief, rough), begin, belief
    )
    belief = _reduced(belief, FEW, (robot.HEADING,))

    def fit_start(noise: robot.Noise) -> GaussianMixture:
        means = belief.means.at[:, robot.LOG_NOISE].set(noise.log_range)
        return GaussianMixture(belief.log_weights, means, belief.chols)

    return Setting(frames, start, Sizes(NARROW, FEW), _cut(frames, wide, quarter), fit_start)


def _cut(frames: Frame, begin: int, end: int) -> Frame:
    return jax.tree.map(lambda leaf: leaf[begin:end], frames)


def one_gaussian(belief: GaussianMixture) -> GaussianMixture:
    """Returns the Gaussian with the belief's moments."""
    return gaussian(belief.mean(), belief.chol())


def innovation_likelihood(method: Method, start: Callable) -> Callable:
    """Returns the log likelihood of frames' ranges as a function of the noise's logs."""

    def of(frames: Frame, vector: Float[Array, "4"]) -> Float[Array, ""]:
        noise = fitted(vector)
        belief = start(noise)
        log_scores = follow(method, robot.model(belief, noise), frames, belief)[1][-1]
        return jnp.nansum(log_scores)

    return of


def distribution_transformer(setting: Setting) -> Track:
    """Returns the shipped network's track; it fits nothing, the noise level is in its state."""
    belief = setting.start(robot.Noise())
    method = Method(gaussian_sum().predict, load("robot").update)
    return filter_track(method, robot.model(belief), setting.frames, belief, setting.sizes)


def ekf(setting: Setting) -> tuple[Track, Float[np.ndarray, "4"]]:
    """Returns the extended Kalman filter's track and its fitted noise."""

    def start(noise: robot.Noise) -> GaussianMixture:
        return one_gaussian(setting.fit_start(noise))

    likelihood = innovation_likelihood(extended, start)
    vector = fit_noise(likelihood, setting.fit_frames, START, EKF_EVALUATIONS)
    noise = fitted(jnp.asarray(vector))
    belief = one_gaussian(setting.start(noise))
    return filter_track(
        extended, robot.model(belief, noise), setting.frames, belief, Sizes(1, 1)
    ), vector


def gaussian_sum_filter(setting: Setting, vector: Float[np.ndarray, "4"]) -> Track:
    """Returns the Gaussian-sum filter's track; its noise is searched from `vector`."""
    method = gaussian_sum()
    likelihood = innovation_likelihood(method, setting.fit_start)
    vector = fit_noise(likelihood, setting.fit_frames, vector, EVALUATIONS)
    noise = fitted(jnp.asarray(vector))
    belief = setting.start(noise)
    return filter_track(method, robot.model(belief, noise), setting.frames, belief, setting.sizes)


def particle_filter(key: Key, setting: Setting, vector: Float[np.ndarray, "4"]) -> Track:
    """Returns the bootstrap particle filter's track; its noise is searched from `vector`."""
    fit_key, *run_keys = jax.random.split(key, 3)

    def likelihood(frames: Frame, vector: Float[Array, "4"]) -> Float[Array, ""]:
        # The same random numbers for every noise, so that the search sees a smooth function.
        noise = fitted(vector)
        belief = setting.fit_start(noise)
        model = robot.model(belief, noise)
        cloud = draw_cloud(fit_key, belief, NUM_FIT_PARTICLES)
        return jnp.nansum(follow_particles(fit_key, model, frames, cloud)[1][-1])

    vector = fit_noise(likelihood, setting.fit_frames, vector, EVALUATIONS)
    noise = fitted(jnp.asarray(vector))
    belief = setting.start(noise)
    model = robot.model(belief, noise)
    total = setting.frames.elapsed.shape[0]
    wide = min(WIDE_PARTICLE_RANGES, total) if belief.num_components > FEW else 0
    cloud = draw_cloud(run_keys[0], belief, NUM_START_PARTICLES if wide else NUM_PARTICLES)
    pieces, seconds = [], 0.0
    for run_key, (begin, end) in zip(run_keys, ((0, wide), (wide, total)), strict=True):
        if begin == end:
            continue
        thin_key, run_key = jax.random.split(run_key)
        if begin:
            cloud = particles.resample(thin_key, cloud, NUM_PARTICLES)
        frames = _cut(setting.frames, begin, end)
        (cloud, piece), took = timed(follow_particles, run_key, model, frames, cloud)
        pieces.append(piece)
        seconds += took
    means, chols, log_scores = map(np.concatenate, zip(*pieces, strict=True))
    return Track(
        np.zeros((total, 1)), means[:, None], chols[:, None], log_scores, 1e6 * seconds / total
    )


def draw_cloud(key: Key, belief: GaussianMixture, num: int) -> particles.Cloud:
    """Returns `num` equally weighted particles of a belief."""
    return particles.Cloud(belief.sample(key, (num,)), jnp.full(num, -np.log(num)))


def follow_particles(key: Key, model: StateSpace, frames: Frame, cloud: particles.Cloud):
    """Returns the last particles, and position and log score after every frame."""

    def body(cloud, moment):
        frame, key = moment
        cloud, log_score = particles.step(key, model, cloud, frame)
        log_score = jnp.where(frame.readings["range"].mask[0], log_score, jnp.nan)
        return cloud, (*particles.position(cloud), log_score)

    keys = jax.random.split(key, frames.elapsed.shape[0])
    return jax.lax.scan(body, cloud, (frames, keys))


def dead_reckoning(setting: Setting) -> Track:
    """Returns the track of the odometry alone, from the moments of the start."""

    def ignore(model, belief, readings):
        del model, readings
        return belief, Info(jnp.zeros(()))

    belief = one_gaussian(setting.start(robot.Noise()))
    method = Method(extended.predict, ignore)
    return filter_track(method, robot.model(belief), setting.frames, belief, Sizes(1, 1))


def run_methods(
    log: Log, start_pose: Float[np.ndarray, "3"] | None, progress: bool = True
) -> dict[str, Track]:
    """Returns every method's track of a log, from a known start pose or from anywhere (None)."""
    tracks: dict[str, Track] = {}
    with tqdm(total=6, disable=not progress, unit="step") as bar:

        def tell(what: str) -> None:
            bar.update(0 if what == FIRST else 1)
            bar.set_description(what)

        tell(FIRST)
        given = setting(log, start_pose)
        tell("distribution transformer")
        tracks["distribution_transformer"] = distribution_transformer(given)
        tell("extended Kalman filter")
        tracks["ekf"], vector = ekf(given)
        tell("Gaussian-sum filter")
        tracks["gaussian_sum"] = gaussian_sum_filter(given, vector)
        tell("particle filter")
        tracks["particle_filter"] = particle_filter(jax.random.key(0), given, vector)
        tell("dead reckoning")
        tracks["dead_reckoning"] = dead_reckoning(given)
        bar.update()
    return tracks
