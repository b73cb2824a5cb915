"""The methods that localise a robot, all on the same model: network, filters, dead reckoning."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from bayesinf import smc
from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.particles import Particles, uniform_particles
from bayesinf.fusion import particles, robot
from bayesinf.fusion.log import Log
from bayesinf.fusion.noise import START, fit_noise, odometry_noise, whole_noise
from bayesinf.fusion.track import (
    Program,
    Sizes,
    Track,
    cut,
    filter_track,
    joined,
    settle,
    stages,
)
from bayesinf.kalman import extended, gaussian_sum
from bayesinf.kalman.filter import Info, Method
from bayesinf.programs.state_space import Frame
from bayesinf.transformers_gmm import DistributionTransformer, load
from bayesinf.types import Key

# An unknown start is wide for this many ranges, then narrows to a fixed number of components.
SIZES = Sizes(24, 48, 4)
ONE = Sizes(0, 1, 1)
NUM_PARTICLES, NUM_START_PARTICLES, NUM_FIT_PARTICLES = 5_000, 100_000, 1_000
WIDE_PARTICLE_RANGES = 300
# Noise is fitted on the first quarter of the ranges by a search of so many evaluations; that of the
# filters that are slower starts from where the extended Kalman filter's ends.
FIT_SHARE = 0.25
# The network's is fitted again when these shares of the ranges are behind.
REFIT_SHARES = (0.375, 0.5, 0.75)
EKF_EVALUATIONS, EVALUATIONS = 120, 25
NOISE_SPREAD = 0.8
FIRST = "reading the log"


class Programs(NamedTuple):
    """The filters on mixtures, each compiled once for all that it is used for.

    Attributes:
        network: the Distribution Transformer.
        ekf: the extended Kalman filter.
        bank: the Gaussian-sum filter, which finds the robot for the other filters too.
    """

    network: Program
    ekf: Program
    bank: Program


def programs(dt: DistributionTransformer | None = None) -> Programs:
    """Returns the filters with this network, or the shipped one."""
    bank = gaussian_sum()
    network = load("robot") if dt is None else dt
    return Programs(Program(Method(bank.predict, network.update)), Program(extended), Program(bank))


class Known(NamedTuple):
    """Where noise can be fitted: place and heading are known.

    Attributes:
        frames: the ranges to fit on, up to the last.
        start: from the noise to the belief before the first of them.
        behind: how many ranges of the log come before the first of them.
    """

    frames: Frame
    start: Callable[[robot.Noise], GaussianMixture]
    behind: int

    def until(self, share: float) -> Frame:
        """Returns the ranges to fit on when that share of the log is behind."""
        total = self.behind + self.frames.elapsed.size
        return cut(self.frames, 0, max(int(share * total), 1) - self.behind)


class Setting(NamedTuple):
    """What every method gets: the log's frames, and where the robot may start.

    Attributes:
        frames: one for every range.
        start: from the noise to the belief before the first frame.
        known: where noise is fitted.
        programs: the filters.
    """

    frames: Frame
    start: Callable[[robot.Noise], GaussianMixture]
    known: Known
    programs: Programs


def setting(
    log: Log, start_pose: Float[np.ndarray, "3"] | None, filters: Programs | None = None
) -> Setting:
    """Returns the setting of a log that starts at a known pose, or anywhere (None)."""
    if start_pose is None:
        start = partial(robot.unknown_start, log)
    else:
        start = partial(robot.known_start, start_pose, num_components=SIZES.few)
    return setting_of(robot.frames(log), start, programs() if filters is None else filters)


def setting_of(
    frames: Frame, start: Callable[[robot.Noise], GaussianMixture], filters: Programs
) -> Setting:
    """Returns the setting of frames and a start."""
    known = find(filters.network, frames, start, robot.Noise())
    return Setting(frames, start, known, filters)


def find(
    program: Program,
    frames: Frame,
    start: Callable[[robot.Noise], GaussianMixture],
    noise: robot.Noise,
) -> Known:
    """Returns where noise can be fitted, as a method itself finds it under a rough noise.

    From a known start that is the start. From anywhere it is where the method has found the robot,
    and at most three quarters of the ranges that may be used are spent on that.
    """
    belief = start(noise)
    if belief.num_components <= SIZES.few:
        return Known(frames, start, 0)
    quarter = max(int(FIT_SHARE * frames.elapsed.size), 1)
    found, end = settle(program, noise, cut(frames, 0, 3 * quarter // 4), belief, SIZES)

    def restart(noise: robot.Noise) -> GaussianMixture:
        # The last coordinate, so its row alone says how it depends on the others: not at all.
        row = jnp.zeros(robot.DIM).at[robot.LOG_NOISE].set(noise.log_range_spread)
        means = found.means.at[:, robot.LOG_NOISE].set(noise.log_range)
        return GaussianMixture(
            found.log_weights, means, found.chols.at[:, robot.LOG_NOISE].set(row)
        )

    return Known(cut(frames, end, frames.elapsed.size), restart, end)


def one_gaussian(belief: GaussianMixture) -> GaussianMixture:
    """Returns the Gaussian with the belief's moments."""
    return gaussian(belief.mean(), belief.chol())


def log_likelihood(
    program: Program, known: Known, noise: robot.Noise, share: float = FIT_SHARE
) -> float:
    """Returns the log density that a filter gives the known ranges of a share of the log."""
    track = filter_track(program, noise, known.until(share), known.start(noise), SIZES)
    return float(np.nansum(track.log_scores))


def as_one_gaussian(known: Known) -> Known:
    """Returns where noise can be fitted by a filter on a single Gaussian."""
    return known._replace(start=lambda noise: one_gaussian(known.start(noise)))


def ekf(setting: Setting) -> tuple[Track, Float[np.ndarray, "4"]]:
    """Returns the extended Kalman filter's track and the logs of its fitted noise."""
    program, known = setting.programs.ekf, as_one_gaussian(setting.known)
    vector = fit_noise(
        lambda vector: log_likelihood(program, known, whole_noise(vector)), START, EKF_EVALUATIONS
    )
    noise = whole_noise(vector)
    belief = one_gaussian(setting.start(noise))
    return filter_track(program, noise, setting.frames, belief, ONE), vector


def log_prior(vector: Float[np.ndarray, "4"]) -> float:
    """Returns the log density of the odometry's noise, log-normal about the default."""
    return -0.5 * float(np.sum(((vector - START)[:3] / NOISE_SPREAD) ** 2))


def odometry_noises(
    setting: Setting, log_prior: Callable[[Float[np.ndarray, "4"]], float]
) -> list[Float[np.ndarray, "4"]]:
    """Returns the logs of the noise that is likeliest to the extended Kalman filter given a prior,
    as fitted on the first quarter of the ranges and then after each of `REFIT_SHARES`."""
    program, known = setting.programs.ekf, as_one_gaussian(setting.known)
    vectors, evaluations = [START], EKF_EVALUATIONS
    for share in (FIT_SHARE, *REFIT_SHARES):

        def log_posterior(vector, share=share):
            likelihood = log_likelihood(program, known, whole_noise(vector), share)
            return likelihood + log_prior(vector)

        vectors.append(fit_noise(log_posterior, vectors[-1], evaluations))
        evaluations = EVALUATIONS
    return vectors[1:]


def network_track(setting: Setting, noises: Sequence[robot.Noise]) -> Track:
    """Returns the network's track under the first noise, and under each of the others from where
    its share of `REFIT_SHARES` is behind."""
    firsts = np.array(REFIT_SHARES[: len(noises) - 1]) * setting.frames.elapsed.size

    def noise(behind: int) -> robot.Noise:
        return noises[int(np.searchsorted(firsts, behind, side="right"))]

    belief = setting.start(noises[0])
    return joined(stages(setting.programs.network, noise, setting.frames, belief, SIZES))


def distribution_transformer(setting: Setting) -> Track:
    """Returns the network's track; it learns the noise as it goes.

    That of the ranges is in its state. The odometry's is fitted on the same ranges as for the other
    methods, under a log-normal prior, and again, on what is behind, as the log grows. On simulated
    logs the network does better so than with the likeliest, or the likeliest to itself.
    """
    vectors = odometry_noises(setting, log_prior)
    return network_track(setting, [odometry_noise(vector[:3]) for vector in vectors])


def gaussian_sum_filter(setting: Setting, vector: Float[np.ndarray, "4"]) -> Track:
    """Returns the Gaussian-sum filter's track; its noise is searched from `vector`."""
    bank = setting.programs.bank
    vector = fit_noise(
        lambda vector: log_likelihood(bank, setting.known, whole_noise(vector)), vector, EVALUATIONS
    )
    noise = whole_noise(vector)
    return filter_track(bank, noise, setting.frames, setting.start(noise), SIZES)


def particle_filter(key: Key, setting: Setting, vector: Float[np.ndarray, "4"]) -> Track:
    """Returns the bootstrap particle filter's track; its noise is searched from `vector`."""
    fit_key, *run_keys = jax.random.split(key, 3)
    follow, ranges = jax.jit(follow_particles), setting.known.until(FIT_SHARE)

    def likelihood(vector):
        # The same random numbers for every noise, so that the search sees a smooth function.
        noise = _arrays(whole_noise(vector))
        cloud = draw_cloud(fit_key, setting.known.start(noise), NUM_FIT_PARTICLES)
        return float(jnp.nansum(follow(fit_key, noise, ranges, cloud)[1][-1]))

    noise = _arrays(whole_noise(fit_noise(likelihood, vector, EVALUATIONS)))
    belief = setting.start(noise)
    total = setting.frames.elapsed.size
    wide = min(WIDE_PARTICLE_RANGES, total) if belief.num_components > SIZES.few else 0
    cloud = draw_cloud(run_keys[0], belief, NUM_START_PARTICLES if wide else NUM_PARTICLES)
    pieces, seconds = [], 0.0
    for run_key, (begin, end) in zip(run_keys, ((0, wide), (wide, total)), strict=True):
        if begin == end:
            continue
        thin_key, run_key = jax.random.split(run_key)
        if begin:
            cloud = particles.thinned(thin_key, cloud, NUM_PARTICLES)
        frames = cut(setting.frames, begin, end)
        compiled = follow.lower(run_key, noise, frames, cloud).compile()
        start = time.perf_counter()
        cloud, piece = jax.block_until_ready(compiled(run_key, noise, frames, cloud))
        seconds += time.perf_counter() - start
        pieces.append(piece)
    means, chols, log_scores = map(np.concatenate, zip(*pieces, strict=True))
    return Track(
        np.zeros((total, 1)), means[:, None], chols[:, None], log_scores, 1e6 * seconds / total
    )


def _arrays(noise: robot.Noise) -> robot.Noise:
    return jax.tree.map(jnp.asarray, noise)


def draw_cloud(key: Key, belief: GaussianMixture, num: int) -> Particles:
    """Returns `num` equally weighted particles of a belief."""
    return uniform_particles(belief.sample(key, (num,)), jnp.asarray(0))


def follow_particles(key: Key, noise: robot.Noise, frames: Frame, cloud: Particles):
    """Returns the last particles, and position and log score after every frame."""
    # Particles carry their own start.
    model = robot.model(gaussian(cloud.values[0], jnp.eye(robot.DIM)), noise)
    fk = smc.bootstrap(model, frames)

    def body(cloud, moment):
        frame, key = moment
        cloud, info = smc.step(key, fk, cloud, frame, particles.POLICY)
        log_score = jnp.where(frame.readings["range"].mask[0], info.log_evidence, jnp.nan)
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
    return filter_track(Program(method), robot.Noise(), setting.frames, belief, ONE)


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
        tell("Distribution Transformer")
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
