"""How a law is checked: exactly, on finite programs.

- `exact`: the exact output measure of a finite JAX program.
- `Measure`: what it returns; `Refused` and `KeyReuse`: what it raises.
"""

from bayesinf.validation.exact import KeyReuse, Measure, Refused, exact

__all__ = ["KeyReuse", "Measure", "Refused", "exact"]
