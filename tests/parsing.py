"""Parses command lines with the parsers of their own programs, and runs nothing else of these.

    python -m tests.parsing < lists.json

Reads a JSON list of the words behind `python -m`. Prints a JSON list with what each program found
wrong, or null. Each is parsed in a process of its own, because flags are defined once in a process.
"""

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback

from absl import app, flags

from sagan_jax.configuration import checks

# What the programs import takes seconds. It is imported once, before the processes fork.
SHARED = (
    'launch.benchmark.tables',
    'launch.sweep.execution',
    'launch.sweep.results',
    'sagan_jax.metrics.comparison',
    'sagan_jax.metrics.folders',
    'sagan_jax.metrics.inception',
    'sagan_jax.published.writing',
    'sagan_jax.system.distributed',
    'sagan_jax.viewing.charts',
    'sagan_jax.viewing.page',
)


class Parsed(BaseException):
    """Raised in place of what a program does after it has parsed its command line."""


def parsed_by_argparse(parser, args=None, namespace=None):
    parse_args(parser, args, namespace)
    raise Parsed


def parsed_by_absl(main, argv=None, flags_parser=None):
    flags_parser(sys.argv)
    config = flags.FLAGS['config'].value
    if config is not None:
        checks.check(config)
        trains = 'mode' in flags.FLAGS and flags.FLAGS['mode'].value == 'train'
        if trains and config.dataset.name == 'image_folder' and not config.dataset.source_dir:
            raise ValueError('dataset.source_dir is missing')
    raise Parsed


def wrong(words: list[str]) -> str | None:
    with tempfile.TemporaryFile('w+') as output:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            output.seek(0)
            return f'status {status}: {output.read()}' if status else None
        status = 1
        try:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = words
            runpy.run_module(words[0], run_name='__main__', alter_sys=True)
        except Parsed:
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == '__main__':
    parse_args = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = parsed_by_argparse
    app.run = parsed_by_absl
    for name in SHARED:
        importlib.import_module(name)
    print(json.dumps([wrong(words) for words in json.load(sys.stdin)]))
