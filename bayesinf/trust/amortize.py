"""From a NumPyro model to a posterior that is trained, calibrated and can be corrected."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bayesinf.distributions.fit import fit as fit_mixture
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.particles import Particles
from bayesinf.training import fit
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import Example, forward_kl
from bayesinf.trust.calibrate import Calibration, calibrate
from bayesinf.trust.correct import correct
from bayesinf.trust.family import Draw, Family, Joint, around
from bayesinf.trust.guard import Guard, Look, guard
from bayesinf.trust.open_model import OpenModel, open_model
from bayesinf.trust.report import Report, posterior_of, score
from bayesinf.trust.ways import Info
from bayesinf.types import Key, calibrated, checked, consistent, law

_NUM_DRAWS = 2048  # that sum up the prior, that show how many fail, and that the guard is fitted to
_NUM_SCORED = 256  # of them for validation and scores


class Amortized(eqx.Module):
    """A posterior for any data of a model and any prior of a family; `amortize` makes one.

    Priors and posteriors are mixtures over the state: the model's sites in the unconstrained
    coordinates of their supports, named by `model.coordinates`. `program(prior, data).constrain`
    brings a state back to the model's own values.

    Law: calibrated, as far as `calibration` says so; exact for any weights where the log likelihood
    is quadratic in the state. `correct` is consistent.

    Attributes:
        network: what was trained.
        model: the model, which data complete.
        prior: the mixture nearest to the model's own prior, for which it stands if none is given.
        calibration: ranks and expected coverage over the family.
        watch: a guard of priors and data.
        report: how the training went.
    """

    network: DistributionTransformer
    model: OpenModel = eqx.field(static=True)
    prior: GaussianMixture
    calibration: Calibration
    watch: Guard
    report: Report

    def posterior(self, prior: GaussianMixture | None, data: Mapping[str, Any]) -> GaussianMixture:
        """Returns the posterior, with as many components as the prior; batches by `jax.vmap`.

        Args:
            prior: of the state; the model's own if None.
            data: values by observed site.

        Raises:
            ValueError: the prior's dimension or values are none; the data's names, shapes or values
                are not those of the model.
        """
        prior = self.prior if prior is None else self._checked(prior)
        return posterior_of(self.network, self.model, prior, self.model.data(data))

    def program(self, prior: GaussianMixture | None, data: Mapping[str, Any]) -> Any:
        """Returns the program of the state: what `correct` and any sampler go by.

        Without a prior it has the model's own, and not the mixture that is near it.
        """
        prior = None if prior is None else self._checked(prior)
        return self.model.program(prior, self.model.data(data))

    @law(consistent)
    def correct(
        self, key: Key, prior: GaussianMixture | None, data: Mapping[str, Any], **options: Any
    ) -> tuple[Particles, Info]:
        """Returns particles for the exact posterior, made from the fast one, and how that one did.

        Law: consistent. Takes the options of `trust.correct` and raises what that does. Many at
        once: `trust.correct_many(key, jax.vmap(self.posterior)(priors, data), lambda each:
        self.program(*each), (priors, data))`.
        """
        return correct(key, self.posterior(prior, data), self.program(prior, data), **options)

    def guard(self, prior: GaussianMixture | None, data: Mapping[str, Any]) -> Look:
        """Returns whether prior and data are unlike those that the network was trained on."""
        prior = self.prior if prior is None else self._checked(prior)
        return self.watch((prior, self.model.data(data)))

    def _checked(self, prior: GaussianMixture) -> GaussianMixture:
        if prior.dim != self.model.dim:
            names = ", ".join(self.model.coordinates)
            raise ValueError(
                f"prior: dimension {prior.dim} came, {self.model.dim} was expected ({names})"
            )
        return checked(prior, "prior")


@law(calibrated)
def amortize(
    key: Key,
    model: Callable[[], Any],
    observed: Sequence[str],
    *,
    family: Family | None = None,
    num_components: int = 4,
    width: int = 48,
    num_chunks: int = 60,
    steps_per_chunk: int = 20,
    batch_size: int = 128,
    peak: float = 3e-3,
    num_runs: int = 1000,
    max_failed: float = 0.1,
    false_alarm: float = 0.01,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Amortized:
    """Returns the trained posterior of a NumPyro model for any prior of a family.

    Priors are drawn from the family, states from them and data from the model; the network learns
    to put density where the states are. Then it is calibrated over the family, k-hat is taken on
    held-out problems, and a guard is fitted to the priors and data that it has met.

    Law: calibrated over the family, as far as the certificate says so.
    Paper: Whittle et al. (arXiv 2502.02463), with outputs relative to the linearised update.

    Args:
        key: a key.
        model: a NumPyro model without arguments (`functools.partial` gives it its covariates) whose
            observed sites have no values yet: `def model(x, y=None): ...`.
        observed: the names of those sites.
        family: from a key to a prior of the state; `around` the model's own if left out.
        num_components: of the family's priors.
        width: of the network.
        num_chunks, steps_per_chunk, batch_size, peak: of its training (`bayesinf.training.fit`):
            pools of simulations, steps on each, examples a step, the highest learning rate.
        num_runs: of the calibration.
        max_failed: the share of simulations that may give NaN. They are drawn again, with another
            prior and state, which leaves the posterior of data that are finite as it is.
        false_alarm: of the certificate's verdict and of the guard's flags.
        checkpoint: a file from which a training that was cut short goes on.
        progress: whether a bar is shown.

    Raises:
        ValueError: the model is none that can be trained for, with the site that is to blame, or
            more of its simulations fail than may.
    """
    keys = jax.random.split(key, 7)
    opened = open_model(model, observed)
    sensors = opened.state_space()
    own = _own_prior(keys[0], opened, num_components, max_failed)
    joint = Joint(opened, around(own) if family is None else family)
    held_out, num_failed = jax.jit(jax.vmap(joint))(jax.random.split(keys[1], _NUM_DRAWS))
    num_failed = int(jnp.sum(num_failed))
    _most_are_sound(num_failed, num_failed + _NUM_DRAWS, "simulations", max_failed)
    some = jax.tree.map(lambda leaf: leaf[:_NUM_SCORED], held_out)

    def examples(draws: Draw) -> Example:
        return Example(draws.prior, jax.vmap(opened.readings)(draws.data), draws.state)

    def pool(key: Key, dt: DistributionTransformer) -> Example:
        del dt
        draws, _ = jax.vmap(joint)(jax.random.split(key, steps_per_chunk * batch_size))
        return examples(draws)

    def loss(dt: DistributionTransformer, batch: Example) -> Float[Array, ""]:
        return forward_kl(dt, sensors, batch)

    network = DistributionTransformer(keys[2], opened.dim, opened.observed, width=width)
    trained, history = fit(
        *(keys[3], network, pool, loss, _schedule(peak, num_chunks * steps_per_chunk)),
        num_chunks=num_chunks,
        steps_per_chunk=steps_per_chunk,
        batch_size=batch_size,
        validate=lambda dt: loss(dt, examples(some)),
        checkpoint=checkpoint,
        progress=progress,
    )
    before, after = (score(keys[4], each, opened, some) for each in (network, trained))

    def simulate(key: Key):
        draw, _ = joint(key)
        return draw.state, (draw.prior, draw.data)

    found = calibrate(
        keys[5],
        simulate,
        lambda given: posterior_of(trained, opened, *given),
        num_runs,
        names=opened.coordinates,
        false_alarm=false_alarm,
    )
    watch = guard(keys[6], (held_out.prior, held_out.data), false_alarm=false_alarm)
    num_simulated = num_failed + _NUM_DRAWS
    report = Report(history, before, after, num_failed, num_simulated, found.calibrated)
    return Amortized(trained, opened, own, found, watch, report)


def _own_prior(
    key: Key, model: OpenModel, num_components: int, max_failed: float
) -> GaussianMixture:
    """Returns the mixture nearest to draws of the model's own prior."""
    draw_key, fit_key = jax.random.split(key)
    draws = np.asarray(jax.jit(jax.vmap(model.sample))(jax.random.split(draw_key, _NUM_DRAWS)))
    sound = np.isfinite(draws).all(axis=1)
    _most_are_sound(int(np.sum(~sound)), _NUM_DRAWS, "draws of the prior", max_failed)
    return fit_mixture(fit_key, jnp.asarray(draws[sound]), num_components)[0]


def _most_are_sound(num_failed: int, num: int, what: str, max_failed: float) -> None:
    if num_failed > max_failed * num:
        raise ValueError(
            f"model: NaN or infinite values came in {num_failed} of {num} {what}, a share of at "
            f"most {max_failed} was expected"
        )


def _schedule(peak: float, num_steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0, peak, num_steps // 20, num_steps, peak / 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
