"""The operations of a traced function."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import JaxprEqn

PRODUCTS = ('dot_general', 'conv_general_dilated')


def operations(function: Callable, *args: Any) -> Iterator[JaxprEqn]:
    """All operations of a function of arrays, or of their shapes, with those of inner programs."""

    def inner(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                for item in value if isinstance(value, tuple | list) else [value]:
                    item = getattr(item, 'jaxpr', item)
                    if hasattr(item, 'eqns'):
                        yield from inner(item)

    return inner(jax.make_jaxpr(function)(*args).jaxpr)


def precisions(equations: Iterable[JaxprEqn]) -> set[str | None]:
    """The precisions of all matrix products and convolutions; None for one without."""
    found = set()
    for equation in equations:
        if equation.primitive.name in PRODUCTS:
            precision = equation.params['precision']
            found |= {None} if precision is None else {each.name for each in precision}
    return found
