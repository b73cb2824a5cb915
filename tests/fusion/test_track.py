"""Tracks of filters: blocks of one shape change nothing, and components are let go when found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.fusion import robot, track
from bayesinf.fusion.methods import (
    ONE,
    REFIT_SHARES,
    SIZES,
    Programs,
    find,
    network_track,
    one_gaussian,
    setting_of,
)
from bayesinf.fusion.noise import START, fit_noise, odometry_noise, whole_noise
from bayesinf.fusion.simulated_robot import drive
from bayesinf.fusion.track import BLOCK, Program, Sizes, filter_track, follow, settle
from bayesinf.kalman import extended

pytestmark = pytest.mark.usefixtures("quick_compilation")

LENGTH = 100


@pytest.fixture(scope="module")
def log():
    return jax.jit(partial(drive, length=LENGTH))(jax.random.key(0))


@pytest.fixture(scope="module")
def ekf():
    return Program(extended)


def start(log):
    return one_gaussian(robot.known_start(np.asarray(log.start)))


def test_a_track_in_blocks_is_the_track_in_one_go(log, ekf):
    assert LENGTH % track.BLOCK
    belief, noise = start(log), jax.tree.map(jnp.asarray, robot.Noise())
    whole = jax.jit(partial(follow, extended))(noise, log.frames, belief)[1]
    pieces = filter_track(ekf, robot.Noise(), log.frames, belief, ONE)
    for name in ("log_weights", "means", "chols", "log_scores"):
        one, other = getattr(whole, name), getattr(pieces, name)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
    assert pieces.us_per_update > 0


def test_noise_is_an_argument_of_a_compiled_program(log, ekf):
    """One program serves every noise, and the noise matters."""
    belief = start(log)
    before = len(ekf._compiled)
    scores = [
        np.nansum(filter_track(ekf, noise, log.frames, belief, ONE).log_scores)
        for noise in (robot.Noise(), robot.Noise(0.05, 0.5, 0.2), robot.Noise())
    ]
    assert len(ekf._compiled) <= max(before, 1)
    assert scores[0] == scores[2] != scores[1]


def test_a_filter_narrows_as_it_learns(log):
    wide = track.narrowed(robot.known_start(np.asarray(log.start), num_components=6), 6)
    bank = Program(extended)
    sizes = Sizes(16, 4, 2)
    stages = list(track.stages(bank, lambda _: robot.Noise(), log.frames, wide, sizes))
    assert [stage.end for stage in stages] == [16, 80, LENGTH]
    assert [stage.piece.log_scores.size for stage in stages] == [16, 64, 20]
    assert [stage.piece.log_weights.shape[1] for stage in stages] == [6, 4, 2]
    found, end = settle(bank, robot.Noise(), log.frames, wide, sizes)
    assert (found.num_components, end) == (2, 80)
    full = filter_track(bank, robot.Noise(), log.frames, wide, sizes)
    assert full.log_weights.shape == (LENGTH, 6)
    np.testing.assert_allclose(np.exp(full.log_weights).sum(1), 1, rtol=1e-5)


def test_oracle_the_search_for_noise_finds_the_top():
    top = START + np.array([0.8, -0.7, 0.5, 0.3])
    found = fit_noise(lambda v: -np.sum((v - top) ** 2), START, 300)
    np.testing.assert_allclose(found, top, atol=1e-3)
    # The control: where a noise breaks the filter down the search does not go.
    found = fit_noise(
        lambda v: np.nan if v[0] > START[0] + 0.1 else -np.sum((v - top) ** 2), START, 300
    )
    assert found[0] <= START[0] + 0.1


def test_noise_is_held_or_left_open():
    open_noise, held = odometry_noise(START[:3]), whole_noise(START)
    np.testing.assert_allclose(open_noise[:3], np.exp(START[:3]))
    assert open_noise[3:] == robot.Noise()[3:]
    assert held.log_range == START[3]
    assert held.log_range_spread < 0.01


def test_noise_is_held_where_a_filter_found_the_robot(log, ekf):
    """What the filter learned of the ranges' noise on its way does not come along."""
    noise = whole_noise(START)
    anywhere = partial(robot.known_start, np.asarray(log.start), num_components=12)
    known = find(ekf, log.frames, anywhere, robot.Noise())
    belief = known.start(noise)
    assert belief.num_components <= SIZES.few
    assert 0 < known.behind == LENGTH - known.frames.elapsed.size
    assert known.until(0.75).elapsed.size == int(0.75 * LENGTH) - known.behind
    np.testing.assert_allclose(belief.means[:, robot.LOG_NOISE], noise.log_range, rtol=1e-6)
    chols = np.asarray(belief.chols)
    np.testing.assert_array_equal(chols[:, robot.LOG_NOISE, : robot.LOG_NOISE], 0)
    np.testing.assert_allclose(
        chols[:, robot.LOG_NOISE, robot.LOG_NOISE], noise.log_range_spread, rtol=1e-6
    )


def test_each_block_runs_under_the_noise_of_its_place(log, ekf):
    """A noise that is fitted later changes nothing before its share of the log is behind."""
    start = partial(robot.known_start, np.asarray(log.start), num_components=2)
    given = setting_of(log.frames, start, Programs(ekf, ekf, ekf))
    quiet, loud = robot.Noise(), robot.Noise(0.05, 0.5, 0.2)
    plain, changed = network_track(given, [quiet]), network_track(given, [quiet, loud])
    change = -(-int(REFIT_SHARES[0] * LENGTH) // BLOCK) * BLOCK
    np.testing.assert_array_equal(changed.means[:change], plain.means[:change])
    assert np.any(changed.means[change:] != plain.means[change:])
