"""Which random keys a function uses, found by interpreting its jaxpr with the keys' own values.

A key may be drawn from once; or it derives others, by one split and by folds, and is not drawn from itself.
Only what keys and control flow depend on is computed: an equation waits until its value is asked for, so that a
training step is followed through its loops without running the network. What rematerialization computes again
does not count as a second use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

DRAWS, SPLIT, FOLD = ("random_bits", "random_gamma", "_poisson"), "random_split", "random_fold_in"
Uses = dict[bytes, list[str]]  # a key's data -> where it was drawn from, split or folded


class Unreadable(Exception):
    """Random numbers are drawn where the interpreter cannot follow."""


class Later:
    """A value that is computed when it is asked for, and then kept."""

    __slots__ = ("compute", "done", "inputs", "value")

    def __init__(self, compute: Callable[..., Any], *inputs: Later) -> None:
        """compute(*values of inputs) is the value."""
        self.compute, self.inputs, self.done, self.value = compute, inputs, False, None


def now(later: Later) -> Any:
    """The value. By a stack: the graph may be deeper than Python's recursion."""
    stack = [later]
    while stack:
        top = stack[-1]
        missing = [] if top.done else [i for i in top.inputs if not i.done]
        if missing:
            stack.extend(missing)
            continue
        if not top.done:
            top.value, top.done = top.compute(*(i.value for i in top.inputs)), True
            top.compute, top.inputs = now, ()
        stack.pop()
    return later.value


def uses(f: Callable, *arguments: Any) -> Uses:
    """Every key that f uses when called with `arguments`, and the lines of code where it does.

    Raises:
        Unreadable: f draws inside a primitive that is not understood, such as shard_map.
    """
    found: Uses = {}
    _interpret(found, "", jax.make_jaxpr(f)(*arguments), [_known(x) for x in jax.tree.leaves(arguments)])
    return found


def reused(found: Uses) -> list[str]:
    """One line for each pair of places that use the same key, with the number of keys."""
    pairs: dict[str, int] = {}
    for places in found.values():
        draws = [place for place in places if place.startswith(DRAWS)]
        splits = [place for place in places if place.startswith(SPLIT)]
        folds = [place for place in places if place.startswith(FOLD)]
        if len(draws) > 1 or len(splits) > 1 or (draws and (splits or folds)):
            first, second = (splits if len(splits) > 1 else draws + splits + folds)[:2]
            again = "again" if first == second else f"and in {second}"
            line = f"one key in {first} {again}"
            pairs[line] = pairs.get(line, 0) + 1
    return [line if n == 1 else f"{line} ({n} keys)" for line, n in pairs.items()]


def _interpret(found: Uses, place: str, closed: ClosedJaxpr, inputs: Sequence[Later]) -> list[Later]:
    """The outputs of a jaxpr that is called at `place`, noting in `found` the keys that it uses."""
    values = dict(zip(closed.jaxpr.constvars, map(_known, closed.consts), strict=True))
    values |= dict(zip(closed.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Later:
        return _known(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        # jax's own functions are traced once and have no line in the code that calls them
        here = source_info_util.summarize(equation.source_info) or place
        outputs = _equation(found, here, equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _equation(found: Uses, place: str, equation: JaxprEqn, inputs: list[Later]) -> list[Later]:
    name, params = equation.primitive.name, equation.params
    inner = list(_inner(equation))
    draws = any(map(_draws, inner)) and params.get("length") != 0
    if params.get("name") == "_poisson":
        # jax's own sampler gives one key to two methods and keeps the result of one
        name, draws = "_poisson", False
    if name in (*DRAWS, SPLIT, FOLD):
        data = np.asarray(jax.random.key_data(now(inputs[0])))
        for row in data.reshape(-1, data.shape[-1]):
            found.setdefault(row.tobytes(), []).append(f"{name} at {place}")
    if draws and name in LOOPS:
        return LOOPS[name](found, place, equation, inputs)
    if "call_jaxpr" in params or (draws and len(inner) == 1 and len(inner[0].jaxpr.invars) == len(inputs)):
        again = params.get("differentiated", False)  # rematerialized
        return _interpret({} if again else found, place, inner[0], inputs)
    if draws:
        raise Unreadable(f"random numbers are drawn inside {name!r}, which is not understood")

    def compute(*values: Any) -> list[Any]:
        result = equation.primitive.bind(*values, **params)
        return result if equation.primitive.multiple_results else [result]

    every = Later(compute, *inputs)
    return [Later(lambda results, i=i: results[i], every) for i in range(len(equation.outvars))]


def _scan(found: Uses, place: str, equation: JaxprEqn, inputs: list[Later]) -> list[Later]:
    body, length, reverse = (equation.params[name] for name in ("jaxpr", "length", "reverse"))
    # a carry has the same shape inside and outside, what is stacked has one axis more outside
    carried = _same_rank(body.jaxpr.outvars, equation.outvars)
    given = _same_rank(body.jaxpr.invars, equation.invars)
    fixed, carry, stacked = inputs[: given - carried], inputs[given - carried : given], inputs[given:]
    slices: list[list[Later]] = []
    for i in reversed(range(length)) if reverse else range(length):
        rows = [Later(lambda x, i=i: x[i], x) for x in stacked]
        outputs = _interpret(found, place, body, [*fixed, *carry, *rows])
        carry = outputs[:carried]
        slices.append(outputs[carried:])
    if reverse:
        slices.reverse()
    columns = zip(*slices, strict=True)
    return [*carry, *(Later(lambda *rows: jax.numpy.stack(rows), *column) for column in columns)]


def _while(found: Uses, place: str, equation: JaxprEqn, inputs: list[Later]) -> list[Later]:
    params = equation.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    test, fixed, carry = inputs[:first], inputs[first:][:second], inputs[first + second :]
    while bool(now(_interpret(found, place, params["cond_jaxpr"], [*test, *carry])[0])):
        carry = _interpret(found, place, params["body_jaxpr"], [*fixed, *carry])
    return carry


def _cond(found: Uses, place: str, equation: JaxprEqn, inputs: list[Later]) -> list[Later]:
    branches = equation.params["branches"]
    index = int(np.clip(int(now(inputs[0])), 0, len(branches) - 1))
    return _interpret(found, place, branches[index], inputs[1:])


LOOPS = {"scan": _scan, "while": _while, "cond": _cond}


def _inner(equation: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())


def _draws(closed: ClosedJaxpr) -> bool:
    """Whether a jaxpr uses a key, at any depth."""
    return any(
        equation.primitive.name in (*DRAWS, SPLIT, FOLD) or any(map(_draws, _inner(equation)))
        for equation in closed.jaxpr.eqns
    )


def _same_rank(inside: Sequence[Any], outside: Sequence[Any]) -> int:
    """How many of the variables of a loop's body have as many axes as what they stand for."""
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(inside, outside, strict=True))


def _known(value: Any) -> Later:
    return Later(lambda: value)
