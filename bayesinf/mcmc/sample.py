"""The loop that runs many chains: warm-up, draws in compiled chunks, and where it was to go on."""

import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, PyTree
from tqdm import tqdm

from bayesinf.mcmc import adaptation
from bayesinf.mcmc.combinators import repeat
from bayesinf.mcmc.devices import map_chains, spread
from bayesinf.mcmc.draws import Draws, Last
from bayesinf.mcmc.foreign import OwnTarget
from bayesinf.mcmc.starts import (
    HasTarget,
    check_axis,
    check_counts,
    check_starts,
    prior_starts,
    shapes_after,
    target_of,
)
from bayesinf.mcmc.state import strong
from bayesinf.programs.program import Program
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, consistent, invariant, law

# Draws that a call of the compiled loop makes at first and at most; any number runs in one program.
FEW, CHUNK = 25, 1_000
# Seconds that a call is to last, in which the bar stands still.
_CALL = 0.3


@law(consistent)
def sample(
    key: Key,
    program: HasTarget | Target | OwnTarget,
    kernel: Kernel,
    *,
    num_chains: int = 4,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    thin: int = 1,
    init: PyTree | None = None,
    progress: bool = True,
) -> Draws:
    """Returns draws of many chains, all run at once.

    The chains start at `init`, positions with a leading axis of chains, or at draws of the
    program's prior. In the warm-up HMC, MALA and NUTS adapt their step size and scale, each chain
    its own, also where they are parts of another kernel; `fixed(kernel)` keeps one as it is. Of
    `thin` draws one is kept.

    Chains are spread evenly over the devices that JAX sees, and wait for each other only on one.
    `jax.config.update("jax_num_cpu_devices", n)`, before anything runs, makes n of a CPU.

    Draws of a program are what it shows (`program.constrain`): those of a NumPyro model are in the
    model's own coordinates, though the chains move in unconstrained ones.

    The loop is compiled once for a kernel, a target and their shapes: another key, another number
    of draws, or other data of the same shape (where the target holds them as leaves, as
    `DataProgram` does, not in a closure) run the same program. `resume` goes on from `draws.last`.

    Law: consistent; the kernel's law is invariance, and averages are exact as draws grow.

    Raises:
        ValueError: a start has zero or NaN density, a count is too small, or the kernel changes
            shapes or dtypes.
    """
    counts = {"num_chains": (num_chains, 1), "num_warmup": (num_warmup, 0)}
    check_counts({**counts, "num_samples": (num_samples, 1), "thin": (thin, 1)})
    init_key, warmup_key, draw_key = jax.random.split(key, 3)
    target = target_of(program)
    positions = prior_starts(init_key, program, num_chains) if init is None else init
    positions = strong(positions)
    check_axis(positions, num_chains)
    states = _init(target, kernel, positions)
    check_starts(target, states)
    kernels, tunings, states = spread((*_start(kernel, states), states), num_chains)
    total = num_warmup + num_samples
    with tqdm(total=total, disable=not progress, unit="draw") as bar:
        phases, pace = adaptation.schedule(num_warmup), _Pace()
        for first, size in pace.chunks(num_warmup):
            phase = _rows(phases, first, size)
            kernels, tunings, states, kept = _chunk(
                warmup_key, target, kernels, tunings, states, phase, first, size
            )
            _report(bar, kept[1], size, "warm-up")
        if num_warmup > 0:
            kernels = _finish(kernels, tunings)
        last = Last(kernels, states, jnp.zeros((), int))
        draws = _collect(draw_key, target, last, tunings, num_samples, thin, bar, pace)
    return _shown(program, draws)


@law(consistent)
def resume(
    key: Key,
    program: HasTarget | Target | OwnTarget,
    last: Last,
    *,
    num_samples: int = 1000,
    thin: int = 1,
    progress: bool = True,
) -> Draws:
    """Returns the next draws of chains that `sample` or `resume` left at `last`.

    With the key that `sample` was given these are, to the bit, the draws that one longer run would
    have made: keys are folded from a draw's number.

    Law: consistent.
    """
    check_counts({"num_samples": (num_samples, 1), "thin": (thin, 1)})
    draw_key = jax.random.split(key, 3)[2]
    with tqdm(total=num_samples, disable=not progress, unit="draw") as bar:
        tunings = _restart(last.kernels, last.states)
        here = spread((last.kernels, last.states, tunings), _num_chains(last.states))
        kernels, states, tunings = here
        last = last._replace(kernels=kernels, states=states)
        target = target_of(program)
        draws = _collect(draw_key, target, last, tunings, num_samples, thin, bar, _Pace())
    return _shown(program, draws)


@law(invariant)
def run(
    key: Key, target: Target, kernel: Kernel, state: Any, num_steps: int
) -> tuple[Any, tuple[PyTree, Any]]:
    """Returns the state after some steps of one chain, and the positions and infos on the way.

    A pure function, for use under `jit` and `vmap`.

    Law: invariant.
    """

    def move(state, key):
        state, info = kernel.step(key, target, state)
        return state, (state.position, info)

    return jax.lax.scan(move, state, jax.random.split(key, num_steps))


def _collect(key, target, last: Last, tunings, num: int, thin: int, bar, pace: "_Pace") -> Draws:
    kernels, states, count = last
    thinned = kernels if thin == 1 else repeat(kernels, thin)
    rest = adaptation.Phase(*(np.zeros(CHUNK, bool) for _ in adaptation.Phase._fields))
    pace.size = max(1, pace.size // thin)
    chunks = []
    for first, size in pace.chunks(num):
        *_, states, kept = _chunk(
            key, target, thinned, tunings, states, _rows(rest, 0, CHUNK), count + first, size
        )
        # To the host at once: the device holds one chunk whatever the number of draws.
        chunks.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:, :size], kept))
        _report(bar, chunks[-1][1], size, "draws")
    positions, info = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *chunks)
    return Draws(positions, info, Last(kernels, states, count + num))


def _shown(program: Any, draws: Draws) -> Draws:
    """Returns the draws as the program shows them; the chains' states stay as they are."""
    if not isinstance(program, Program):
        return draws
    positions = jax.tree.map(np.asarray, _constrain(program, draws.positions))
    return Draws(positions, draws.info, draws.last)


@eqx.filter_jit
def _constrain(program: Program, positions: PyTree) -> PyTree:
    return jax.vmap(jax.vmap(program.constrain))(positions)


class _Pace:
    """How many draws a call makes: as many as, by the last call's speed, fit its time."""

    def __init__(self):
        self.size = FEW

    def chunks(self, num: int) -> Iterator[tuple[int, int]]:
        """Yields the first draw and the size of every call."""
        first = 0
        while first < num:
            size = min(self.size, num - first)
            begin = time.perf_counter()
            yield first, size
            fits = size * _CALL / (time.perf_counter() - begin)
            first, self.size = first + size, min(max(1, int(fits)), CHUNK)


def _rows(phases: adaptation.Phase, first: int, size: int) -> adaptation.Phase:
    """Returns a chunk's phases, filled up to its full size."""
    return adaptation.Phase(*(np.resize(leaf[first : first + size], CHUNK) for leaf in phases))


@eqx.filter_jit
def _init(target, kernel, positions):
    return strong(jax.vmap(lambda position: kernel.init(target, position))(positions))


@eqx.filter_jit
def _start(kernel, states):
    """Returns a kernel a chain and what its warm-up remembers."""
    start = eqx.filter_vmap(lambda state: adaptation.start(kernel, state.position))
    return _strong_arrays(start(states))


@eqx.filter_jit
def _restart(kernels, states):
    def memory(kernel, state):
        return adaptation.start(kernel, state.position)[1]

    return _strong_arrays(eqx.filter_vmap(memory)(kernels, states))


@eqx.filter_jit
def _finish(kernels, tunings):
    return eqx.filter_vmap(adaptation.finish)(kernels, tunings)


def _chunk(key, target, kernels, tunings, states, phases, first, size):
    """Returns kernels, memories and states after `size` draws, and what room for a chunk holds."""
    first, size = jnp.asarray(first), jnp.asarray(size)
    return _advance(key, target, kernels, tunings, states, phases, first, size)


@eqx.filter_jit
def _advance(key, target, kernels, tunings, states, phases, first, size):
    # Warm-up and draws are one program, whose compilation is the price of a first run.
    kernel_arrays, kernel_rest = eqx.partition(kernels, eqx.is_array)
    common, common_rest = eqx.partition((key, target, phases, first, size), eqx.is_array)

    def chain(common, number, arrays, tuning, state):
        key, target, phases, first, size = eqx.combine(common, common_rest)
        key = jax.random.fold_in(key, number)

        def one(index, carry):
            arrays, tuning, state, kept = carry
            kernel = eqx.combine(arrays, kernel_rest)
            state, info = kernel.step(jax.random.fold_in(key, first + index), target, state)
            phase = jax.tree.map(lambda leaf: leaf[index], phases)

            def adapt():
                adapted = adaptation.update(kernel, tuning, state.position, info, phase)
                return eqx.filter(adapted, eqx.is_array)

            arrays, tuning = jax.lax.cond(phase.adapts, adapt, lambda: (arrays, tuning))
            return arrays, tuning, state, _put(kept, index, (state.position, info))

        kernel = eqx.combine(arrays, kernel_rest)
        info = shapes_after(key, target, kernel, state)[1]
        kept = _room((state.position, info))
        return jax.lax.fori_loop(0, size, one, (arrays, tuning, state, kept))

    num_chains = _num_chains(states)
    each = map_chains(chain, num_chains)
    arrays, tunings, states, kept = each(
        common, jnp.arange(num_chains), kernel_arrays, tunings, states
    )
    return eqx.combine(arrays, kernel_rest), tunings, states, kept


def _num_chains(states: Any) -> int:
    return jax.tree.leaves(states)[0].shape[0]


def _room(values: PyTree) -> PyTree:
    """Returns zeros in which a chunk of such values fits."""
    return jax.tree.map(lambda leaf: jnp.zeros((CHUNK, *leaf.shape), leaf.dtype), values)


def _put(room: PyTree, index: Int[Array, ""], values: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, value: leaf.at[index].set(value), room, values)


def _report(bar: tqdm, infos: Any, size: int, phase: str) -> None:
    acceptance = float(np.mean(np.asarray(infos.acceptance)[:, :size]))
    diverged = np.asarray(getattr(infos, "diverged", np.zeros((1, 1), bool)))[:, :size]
    bar.set_postfix(phase=phase, acceptance=f"{acceptance:.2f}", diverged=int(diverged.sum()))
    bar.update(size)


def _strong_arrays(tree: PyTree) -> PyTree:
    """Returns a pytree, which may hold functions, without weak types."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(strong(arrays), rest)
