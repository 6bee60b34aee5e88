"""launch.sweep with a trainer without networks: python tests/launch/sweep/fake_sweep.py --config …

The trainer counts to STEPS and scrambles a number at each step, so a run that lost or repeated a
step ends with another number. It writes the files of the real trainer. The variable FAIL names a
run that fails; SLOW and SLOW_SCORES are the seconds of a step and of scoring.
"""

import json
import os
import sys
import time
from pathlib import Path

STEPS = 6


def command(run, mode):
    return [sys.executable, __file__, mode, run.name, str(run.folder)]


def scramble(state, name):
    return (state * 31 + sum(map(ord, name))) % 9973


def row(name, num_fake, value, **rest):
    counts = {'step': STEPS, 'num_fake': num_fake, 'num_real': num_fake}
    return {'name': name, 'value': value, 'data': 'none', 'split': 'train'} | counts | rest


def train(name, folder):
    print('devices        1 × abacus')
    record_process(folder)
    (folder / 'config.json').write_text(
        json.dumps(
            {
                'config': {
                    'num_train_steps': STEPS,
                    'batch_size': 8,
                    'discriminator_steps': 1,
                    'dataset': {'num_classes': 10},
                    'model': {'generator_attention': [16], 'discriminator_attention': [16]},
                }
            }
        )
    )
    if os.environ.get('FAIL') == name:
        print('error: The abacus is broken.')
        sys.exit(2)
    saved = {int(path.name): path for path in (folder / 'checkpoints').glob('*')}
    done = max(saved, default=0)
    state = int((saved[done] / 'state').read_text()) if saved else 1
    lines = folder / 'metrics.jsonl'
    kept = lines.read_text().splitlines()[:done] if lines.exists() else []
    lines.write_text(''.join(line + '\n' for line in kept))
    for step in range(done + 1, STEPS + 1):
        time.sleep(float(os.environ.get('SLOW', 0.02)))
        state = scramble(state, name)
        with lines.open('a') as file:
            values = {'step': step, 'discriminator_loss': 1.0, 'images_per_second': 80.0}
            file.write(json.dumps(values) + '\n')
        if step % 2 == 0:
            write_rows(folder, step, [row('fid20_train', 20, state / 7)])
            partial = folder / 'checkpoints' / f'{step}.partial'
            partial.mkdir(parents=True)
            (partial / 'state').write_text(str(state))
            partial.rename(folder / 'checkpoints' / str(step))


def evaluate(name, folder):
    record_process(folder)
    time.sleep(float(os.environ.get('SLOW_SCORES', 0)))
    state = int((folder / 'checkpoints' / str(STEPS) / 'state').read_text())
    rows = json.loads((folder / 'evaluation' / f'{STEPS:06d}.json').read_text())[:1]
    write_rows(folder, STEPS, [*rows, row('fid50_train', 50, state / 5)])


def write_rows(folder, step, rows):
    path = folder / 'evaluation' / f'{step:06d}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows))


def record_process(folder):
    """Records this process, and 'overlap' if an earlier one is still alive."""
    path = folder / 'processes'
    for line in path.read_text().split() if path.exists() else ():
        if line.isdecimal() and is_alive(int(line)):
            path.open('a').write('overlap\n')
    path.open('a').write(f'{os.getpid()}\n')


def is_alive(pid):
    try:
        status = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except FileNotFoundError:
        return False
    return status.split()[0] != 'Z'  # a zombie has ended


if __name__ == '__main__':
    if sys.argv[1] in ('train', 'evaluate'):
        {'train': train, 'evaluate': evaluate}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    else:
        from launch.sweep import __main__ as sweep
        from sagan_jax.system import command_line, ending

        ending.prepare()
        sweep.create_command = lambda file, overrides: command
        command_line.run(sweep.main, sweep.CONFIG)
