"""Where two records differ, and versions."""

import platform

import numpy as np

from sagan_jax.system.records import differences, versions


def test_differences():
    one = {'b': 1, 'a': 2, 'same': [1], 'gone': None}
    other = {'b': 3, 'a': 'x', 'same': [1], 'new': 0}
    assert differences(one, other) == [
        ('a', 2, 'x'),
        ('b', 1, 3),
        ('gone', None, 'missing'),
        ('new', 'missing', 0),
    ]
    assert differences(one, dict(one)) == []


def test_versions():
    found = versions()
    assert found['numpy'] == np.__version__
    assert found['python'] == platform.python_version()
