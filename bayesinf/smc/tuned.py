"""Kernels that take their hyper-parameters from the particles that they are about to move."""

from collections.abc import Callable

import equinox as eqx

from bayesinf.distributions.particles import Particles
from bayesinf.types import Kernel, consistent, law


@law(consistent)
class Tuned(eqx.Module):
    """A kernel to be tuned by particles; `tuned` makes one.

    Attributes:
        kernel: what is tuned.
        from_particles: (kernel, particles) to the kernel with its hyper-parameters set.
    """

    kernel: Kernel
    from_particles: Callable[[Kernel, Particles], Kernel]

    def at(self, particles: Particles) -> Kernel:
        return self.from_particles(self.kernel, particles)


@law(consistent)
def tuned(kernel: Kernel, from_particles: Callable[[Kernel, Particles], Kernel]) -> Tuned:
    """Returns the kernel that `move` tunes by the particles before it moves them.

    Law: consistent; a particle's move then depends on the others, which at finite n is a bias.
    Paper: Fearnhead and Taylor (2013), An adaptive sequential Monte Carlo sampler, section 3.
    """
    return Tuned(kernel, from_particles)
