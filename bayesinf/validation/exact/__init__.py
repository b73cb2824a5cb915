"""The exact validator: the output measure of a finite JAX program, run in all worlds at once.

- `exact(fn, *args)`: the measure; `Measure`: its atoms and masses.
- `Refused`, `KeyReuse`: what stands in the way, and where.
- `register(name, law)`: gives a sampler of your own, a named jitted function, its exact law.

`values` and `worlds` are the state, `interpreter` the loop over equations, and the rules lie by
concern: `moves` and `arrays` (NumPy), `deterministic` (what is compiled), `control`, `draws`,
`samplers`, `uniforms` and `decisions`.
"""

from bayesinf.validation.exact.measure import Measure, exact
from bayesinf.validation.exact.samplers import register
from bayesinf.validation.exact.values import KeyReuse, Refused

__all__ = ["KeyReuse", "Measure", "Refused", "exact", "register"]
