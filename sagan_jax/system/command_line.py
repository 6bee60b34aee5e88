"""What the programs' command lines share: a configuration, mistakes reported in one sentence."""

import errno
import logging
import sys
import threading
import traceback
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sagan_jax.configuration import files
from sagan_jax.errors import UserError
from sagan_jax.system import cpu


def define_config() -> flags.FlagHolder:
    """The flag --config FILE:VARIANT, and --config.KEY=VALUE for each of its keys."""
    return config_flags.DEFINE_config_file(
        'config',
        None,
        'Configuration: the path of a file or the name of one of ours, with a variant or not, as '
        'my_config.py, quickstart or imagenet128:feat32.',
    )


def with_located_config(argv: list[str]) -> list[str]:
    """The same arguments with the path of the configuration in place of its name.

    Raises:
      UserError: see `files.locate`.
    """
    located = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition('=')
        if flag.lstrip('-') != 'config' or not flag.startswith('-'):
            continue
        if equals:
            located[index] = f'{flag}={files.locate(value)}'
        elif index + 1 < len(argv):
            located[index + 1] = files.locate(argv[index + 1])
    return located


def run(main: Callable[[list[str]], None], config: flags.FlagHolder) -> None:
    """Runs `main`; a mistake of the user's, or a full disk, ends in one sentence and status 2."""

    def parse(argv):
        remaining = _parse(argv, config)
        if len(remaining) > 1:
            raise UserError(f'Unexpected argument {remaining[1]!r}: see --help.')
        return remaining

    cpu.restart_with_large_pages()
    cpu.prepare()
    absl_logging.set_verbosity(absl_logging.WARNING)
    _quieten_failed_writes()
    sys.stdout.reconfigure(line_buffering=True)  # progress shows in log files too
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        what = error.filename or 'What was asked for'
        print(
            f'error: {what} cannot be written ({error.strerror}): make room, or choose another '
            'folder.',
            file=sys.stderr,
        )
        sys.exit(2)


def _quieten_failed_writes() -> None:
    """A checkpoint that cannot be written is told in a sentence, to which Orbax and TensorStore
    would add a thousand lines: an exception left over for each of its arrays and threads, logged
    and then raised."""
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)

    def report_unraisable(args):
        if str(args.exc_value) != 'Event loop is closed':
            unraisable(args)

    def report_in_thread(args):
        if 'orbax' not in type(args.thread).__module__:
            in_thread(args)

    sys.unraisablehook, threading.excepthook = report_unraisable, report_in_thread


def _parse(argv: list[str], config: flags.FlagHolder) -> list[str]:
    """Parses; what absl or ml_collections answer with a traceback or status 1 is a `UserError`."""
    try:
        remaining = flags.FLAGS(with_located_config(argv))
        if config.value is not None:
            config.value.lock()  # a configuration that could not be loaded says so on first use
        return remaining
    except ImportError as error:
        path = traceback.extract_tb(error.__traceback__)[-1].filename
        raise UserError(
            f'The configuration cannot be read, because {path} imports what is not there '
            f'({error}): install the module, or put its folder on PYTHONPATH.'
        ) from error
    except SyntaxError as error:
        raise UserError(
            f'The configuration {error.filename} is not Python ({error.msg}, line {error.lineno}): '
            'correct it.'
        ) from error
    except (AttributeError, KeyError) as error:
        key = str(error).strip('\'"')
        raise UserError(
            f'The configuration has no key {key!r}: sagan_jax/configuration/defaults.py lists '
            'every key.'
        ) from error
    except flags.Error as error:
        if 'get_config() takes' in str(error):
            raise UserError('This configuration has no variants: leave out the colon.') from error
        raise UserError(f'{str(error).splitlines()[-1]}: see --help.') from error
