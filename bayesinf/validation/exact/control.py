"""Calls, branches and loops, where each world goes its own way."""

import itertools

import numpy as np

from bayesinf.validation.exact.deterministic import closed
from bayesinf.validation.exact.values import Known, Refused, Value, alike, opaque


def _scan(machine, eqn, inputs):
    params = eqn.params
    num_consts, num_carry = _sections(params)
    length = params["length"]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    first = num_consts + num_carry
    avals = [v.aval for v in eqn.outvars]
    with machine.worlds.scope(dict(enumerate(inputs))) as held:
        for step in steps:
            # The carry is popped, so that the body alone keeps it alive and worlds merge sooner.
            args = [held[i] for i in range(num_consts)]
            args += [held.pop(i) for i in range(num_consts, first)]
            args += [held[i].move(held[i].array[:, step]) for i in range(first, len(inputs))]
            outs = machine.call(closed(params["jaxpr"]), args)
            held.update({num_consts + i: out for i, out in enumerate(outs[:num_carry])})
            held.update({(step, i): out for i, out in enumerate(outs[num_carry:])})
        carry = [held[num_consts + i] for i in range(num_carry)]
        stacked = [
            _stack([held[step, i] for step in range(length)], aval)
            for i, aval in enumerate(avals[num_carry:])
        ]
    return carry + stacked


def _sections(params) -> tuple[int, int]:
    """Returns how many of a scan's operands are constants, and how many its carry."""
    if "ft_in" in params:  # newer than JAX 0.10
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def _stack(values: list[Value], aval) -> Value:
    if not values:
        return Known(np.zeros((1, *aval.shape), aval.dtype))
    same = alike(values)
    if same is None:
        return opaque(aval.shape, f"{values[0].noun} at some steps of a loop, not at others")
    worlds = max(len(v.array) for v in same)
    return same[0].move(np.stack([v.broadcast(worlds) for v in same], axis=1))


def _cond(machine, eqn, inputs):
    which, *args = inputs
    branches = [closed(b) for b in eqn.params["branches"]]
    label = np.clip(_answer(which, "a branch").astype(np.int64), 0, len(branches) - 1)
    if np.all(label == label[0]):
        return machine.call(branches[label[0]], args)
    worlds, before, used, groups = machine.worlds, machine.consumed, {}, []
    with worlds.scope(dict(enumerate(args))) as held:
        whole = worlds.group()
        for i in np.unique(label):
            worlds.enter(whole, np.nonzero(label == i)[0])
            # No world goes through two branches, so they may use the same key.
            machine.consumed = dict(before)
            outs = machine.call(branches[i], [held.pop(n) for n in range(len(args))])
            used |= machine.consumed
            held.update(enumerate(outs))
            groups.append(worlds.group())
        machine.consumed = used
        worlds.join(groups)
        return [held[n] for n in range(len(eqn.outvars))]


def _while(machine, eqn, inputs):
    params, worlds = eqn.params, machine.worlds
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    first, groups = num_cond + num_body, []
    if params["cond_jaxpr"].out_avals[0].shape:
        raise Refused("a loop under vmap that ends in each lane on its own; lax.map has an answer")
    with worlds.scope(dict(enumerate(inputs))) as held:
        for step in itertools.count():
            carry = [held[i] for i in range(first, len(inputs))]
            consts = [held[i] for i in range(num_cond)]
            (goes_on,) = machine.call(closed(params["cond_jaxpr"]), consts + carry)
            going = np.broadcast_to(_answer(goes_on, "the end of a loop"), (len(worlds),))
            if not np.all(going):
                whole = worlds.group()
                if not np.all(going == going[0]):
                    worlds.enter(whole, np.nonzero(~going)[0])
                groups += [worlds.group()]
                if not np.any(going):
                    break
                worlds.enter(whole, np.nonzero(going)[0])
            left = worlds.masses.sum()
            if groups and left <= machine.truncation:
                worlds.missing_mass += left
                break
            if step >= machine.max_iterations:
                raise Refused(
                    f"a loop that goes on with probability {left:.2g} after max_iterations="
                    f"{machine.max_iterations} steps; truncation= says how much may be cut off"
                )
            consts = [held[i] for i in range(num_cond, first)]
            carry = [held.pop(i) for i in range(first, len(inputs))]
            outs = machine.call(closed(params["body_jaxpr"]), consts + carry)
            held.update({first + i: out for i, out in enumerate(outs)})
        worlds.join(groups)
        return [held[i] for i in range(first, len(inputs))]


def _answer(value: Value, what: str) -> np.ndarray:
    if not isinstance(value, Known):
        raise Refused(f"{what} that depends on {value.noun}")
    return value.array


RULES = {"cond": _cond, "scan": _scan, "while": _while}
