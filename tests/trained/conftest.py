"""The trained model of these tests."""

import pytest

import sagan_jax


@pytest.fixture(scope='module')
def model(trained_workdir):
    return sagan_jax.load(trained_workdir)
