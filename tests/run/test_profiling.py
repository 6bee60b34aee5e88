"""A profile covers the steps asked for, whatever a call of the step runs."""

import jax
import pytest

from sagan_jax.run.profiling import Profile


@pytest.mark.parametrize(
    ('first', 'last', 'begin', 'end', 'per_call', 'traced'),
    [
        (1, 1, 0, 3, 1, [1]),
        (2, 3, 0, 5, 1, [2, 3]),
        (3, 9, 0, 5, 1, [3, 4, 5]),  # the run ends in the window
        (2, 4, 2, 6, 1, [3, 4]),  # it resumes in the window
        (2, 4, 4, 6, 1, []),  # it resumes behind it
        (3, 6, 0, 8, 2, [3, 4, 5, 6]),
    ],
)
def test_the_window_is_traced(first, last, begin, end, per_call, traced, tmp_path, monkeypatch):
    tracing, found = [], []
    monkeypatch.setattr(jax.profiler, 'start_trace', tracing.append)
    monkeypatch.setattr(jax.profiler, 'stop_trace', tracing.pop)
    profile = Profile(tmp_path, first, last)
    profile.update(begin, ())
    for step in range(begin + per_call, end + 1, per_call):
        if tracing:
            found += range(step - per_call + 1, step + 1)
        profile.update(step, ())
    profile.stop()
    assert found == traced
    assert tracing == []
