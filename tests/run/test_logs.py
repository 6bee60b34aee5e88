"""Each step stands once in the metrics, however often a run was killed."""

import json
import resource

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sagan_jax.run import logs
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog, Stopwatch


def steps(workdir):
    return [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').open()]


def curve(workdir):
    """The curve 'loss' as TensorBoard shows it."""
    found = EventAccumulator(str(workdir / 'tensorboard'))
    found.Reload()
    return [(point.step, point.value) for point in found.Scalars('loss')]


def test_a_resumed_run_takes_back_later_lines(tmp_path):
    with RunLog(RunFolder(tmp_path), 0) as log:
        for step in (1, 2, 3):
            log.scalars(step, {'loss': step / 2})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with RunLog(RunFolder(tmp_path), 2) as log:
        log.scalars(3, {'loss': 9.0})
    assert steps(tmp_path) == [1, 2, 3]
    last = (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]
    assert json.loads(last) == {'step': 3, 'loss': 9.0}
    assert curve(tmp_path) == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_a_new_run_starts_an_empty_record(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
    with RunLog(RunFolder(tmp_path), 0):
        pass
    assert steps(tmp_path) == []


def test_a_full_disk_delays_lines_and_stops_nothing(tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(RunFolder(tmp_path), 0) as log:
        log.scalars(1, {'loss': 0.5})
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        try:
            for step in range(2, 30):
                log.scalars(step, {'loss': 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / 'metrics.jsonl').stat().st_size == 50
        assert 'metrics.jsonl cannot be written (File too large)' in capsys.readouterr().out
        log.scalars(30, {'loss': 0.25})
    assert steps(tmp_path) == list(range(1, 31))
    assert curve(tmp_path)[-1] == (30, 0.25)


def test_the_stopwatch_leaves_out_pauses(monkeypatch):
    now = 100.0
    monkeypatch.setattr(logs.time, 'monotonic', lambda: now)
    stopwatch = Stopwatch(step=3)
    assert stopwatch.lap(3) is None
    now += 4.0
    with stopwatch.paused():
        now += 60.0
    now += 1.0
    assert stopwatch.lap(13) == 10 / 5.0
    now += 2.0
    assert stopwatch.seconds() == 2.0
    assert stopwatch.lap(14) == 0.5


def test_the_stopwatch_measures_the_share_of_calls(monkeypatch):
    now = 100.0
    monkeypatch.setattr(logs.time, 'monotonic', lambda: now)
    stopwatch = Stopwatch(step=0)
    for waiting in (1.0, 2.0):
        with stopwatch.calling():
            now += 0.5
        now += waiting
    assert stopwatch.share_of_calls() == 1 / 4
    stopwatch.lap(2)
    now += 1.0
    assert stopwatch.share_of_calls() == 0
