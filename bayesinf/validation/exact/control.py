"""Calls, branches and loops, where each world goes its own way."""

import itertools
from contextlib import nullcontext

import numpy as np

from bayesinf.validation.exact.deterministic import closed
from bayesinf.validation.exact.values import Keys, Known, Refused, Value, alike, opaque
from bayesinf.validation.exact.worlds import Group


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
    cond, body, num_cond, first = _loop(eqn.params)
    if cond.out_avals[0].shape:
        return _while_by_lane(machine, eqn, inputs)
    groups: list[Group] = []
    carried = range(first, len(inputs))
    with machine.worlds.scope(dict(enumerate(inputs))) as held:
        for step in itertools.count():
            (goes_on,) = machine.call(cond, [held[i] for i in (*range(num_cond), *carried)])
            if not _goes_on(machine, _answer(goes_on, "the end of a loop"), groups, step):
                break
            consts = [held[i] for i in range(num_cond, first)]
            outs = machine.call(body, consts + [held.pop(i) for i in carried])
            held.update(zip(carried, outs, strict=True))
        machine.worlds.join(groups)
        return [held[i] for i in carried]


def _while_by_lane(machine, eqn, inputs):
    """A loop under vmap, which runs until every lane has ended; a lane keeps what it ended with.

    What runs on in a lane that has ended is of no account. Numbers stay there as they were at its
    end, so that worlds can merge; but keys and counters, which are the same in every world, go on,
    as the draws of the other lanes need them so.
    """
    cond, body, num_cond, first = _loop(eqn.params)
    groups: list[Group] = []
    apart = False
    carried = range(first, len(inputs))
    start: dict = {("kept", i): inputs[i] for i in carried}
    start["alive"] = Known(np.ones((1, *cond.out_avals[0].shape), bool))
    with machine.worlds.scope(start | dict(enumerate(inputs))) as held:
        for step in itertools.count():
            (goes_on,) = machine.call(cond, [held[i] for i in (*range(num_cond), *carried)])
            alive = held["alive"].array
            for i in carried:
                held["kept", i] = _choose(alive, held[i], held["kept", i])
            alive = alive & _answer(goes_on, "the end of a loop")
            held["alive"] = Known(alive)
            if not _goes_on(machine, alive.reshape(len(alive), -1).any(axis=1), groups, step):
                break
            alive = held["alive"].array
            apart |= not alive.all()
            for i in carried:
                if not _same_everywhere(held[i]):
                    held[i] = held["kept", i]
            consts = [held[i] for i in range(num_cond, first)]
            # Where a lane has ended in every world, its draws are none, whatever key they use.
            with machine.doubtful() if not alive.any(axis=0).all() else nullcontext():
                outs = machine.call(body, consts + [held.pop(i) for i in carried])
            held.update(zip(carried, outs, strict=True))
        for i in carried:
            held[i] = Known(np.zeros(1))
        machine.worlds.join(groups)
        results = [held["kept", i] for i in carried]
    reason = "a key from a loop under vmap whose lanes ended apart"
    return [
        opaque(x.array.shape[1:], reason) if apart and isinstance(x, Keys) else x for x in results
    ]


def _loop(params) -> tuple:
    """Returns condition and body of a loop, and where operands of the body and carry begin."""
    num_cond = params["cond_nconsts"]
    first = num_cond + params["body_nconsts"]
    return closed(params["cond_jaxpr"]), closed(params["body_jaxpr"]), num_cond, first


def _goes_on(machine, going: np.ndarray, groups: list[Group], step: int) -> bool:
    """Sets the worlds where a loop has ended aside; returns whether it goes on in others."""
    worlds = machine.worlds
    going = np.broadcast_to(going, (len(worlds),))
    if not np.all(going):
        whole = worlds.group()
        if not np.all(going == going[0]):
            worlds.enter(whole, np.nonzero(~going)[0])
        groups.append(worlds.group())
        if not np.any(going):
            return False
        worlds.enter(whole, np.nonzero(going)[0])
    left = worlds.masses.sum()
    if groups and left <= machine.truncation:
        worlds.missing_mass += left
        return False
    if step >= machine.max_iterations:
        raise Refused(
            f"a loop that goes on with probability {left:.2g} after max_iterations="
            f"{machine.max_iterations} steps; truncation= says how much may be cut off"
        )
    return True


def _choose(lanes: np.ndarray, new: Value, old: Value) -> Value:
    """Returns the new value in some lanes, the leading axes, and the old in the others."""
    if new is old:
        return old
    same = alike([new, old])
    if same is None:
        return opaque(new.array.shape[1:], f"{new.noun} in some lanes of a loop, not in others")
    lanes = lanes.reshape(*lanes.shape, *(1,) * (new.array.ndim - lanes.ndim))
    return same[0].move(np.where(lanes, same[0].array, same[1].array))


def _same_everywhere(value: Value) -> bool:
    return len(value.array) == 1 or bool(np.all(value.array == value.array[:1]))


def _answer(value: Value, what: str) -> np.ndarray:
    if not isinstance(value, Known):
        raise Refused(f"{what} that depends on {value.noun}")
    return value.array


RULES = {"cond": _cond, "scan": _scan, "while": _while}
