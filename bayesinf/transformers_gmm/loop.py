"""The network in a filter loop: the loop of the Kalman family with the network as its update."""

from collections.abc import Iterable, Iterator

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman import extended, filter
from bayesinf.kalman.filter import Info, Method
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.transformers_gmm.absolute import AbsoluteTransformer
from bayesinf.transformers_gmm.diversity import diversified
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.zoo import check_model

Network = DistributionTransformer | AbsoluteTransformer


def as_method(dt: Network) -> Method:
    """Returns the filter that predicts like the extended Kalman filter and updates by the network.

    Components are kept apart as in the loop that the network was trained in. For another predict
    compose your own, `Method(gaussian_sum().predict, dt.update)`.
    """
    method = Method(extended.predict, dt.update)
    return diversified(method, dt.num_splits) if dt.num_splits else method


def step(
    dt: Network, model: StateSpace, belief: GaussianMixture, frame: Frame
) -> tuple[GaussianMixture, Info]:
    """Returns the belief after one frame and what the readings said; compiles once."""
    return filter.step(as_method(dt), model, belief, frame)


def run(
    dt: Network,
    model: StateSpace,
    frames: Frame,
    belief: GaussianMixture | None = None,
) -> tuple[GaussianMixture, Info]:
    """Returns the beliefs after every frame of a log and the infos, `lax.scan` of `step`.

    Raises:
        ValueError: the model does not match the network, or holds values that are no distribution.
    """
    check_model(dt, model)
    return filter.run(as_method(dt), model, frames, belief)


def stream(
    dt: Network,
    model: StateSpace,
    frames: Iterable[Frame],
    belief: GaussianMixture | None = None,
) -> Iterator[tuple[GaussianMixture, Info]]:
    """Yields belief and info after each frame as it comes, for live data.

    Raises:
        ValueError: as `run`.
    """
    check_model(dt, model)
    yield from filter.stream(as_method(dt), model, frames, belief)
