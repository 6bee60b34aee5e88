"""Records of how something was made: where two differ, and the versions that go into them."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

_PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain'),
    *('numpy', 'scipy', 'pillow'),
)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys in which two records differ, sorted, each with both values.

    A key that one of them lacks has the value 'missing' there.
    """
    absent = object()
    return [
        (key, one.get(key, 'missing'), other.get(key, 'missing'))
        for key in sorted(one.keys() | other.keys())
        if one.get(key, absent) != other.get(key, absent)
    ]


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on, and of Python."""
    return {name: metadata.version(name) for name in _PACKAGES} | {
        'python': platform.python_version()
    }
