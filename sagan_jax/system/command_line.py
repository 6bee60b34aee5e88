"""Shared by the command lines: the flag --config, modes, and errors in one sentence."""

import ast
import json
import logging
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sagan_jax.configuration import defaults, files
from sagan_jax.errors import UserError
from sagan_jax.system import cpu, numerics, output, paths
from sagan_jax.system.failures import writing
from sagan_jax.system.files import atomic_path

_HELP = ('--help', '-help', '-h', '-?')


class Mode(NamedTuple):
    """What a program does with one value of its flag --mode.

    Attributes:
      does: a predicate, such as 'draws images of the generator'.
      example: a whole command.
      flags: names of the flags that this mode reads. A flag that no mode names belongs to all.
    """

    does: str
    example: str
    flags: tuple[str, ...] = ()


def define_config() -> flags.FlagHolder:
    """Defines the flag --config FILE:VARIANT, and --config.KEY=VALUE for each of its keys."""
    return config_flags.DEFINE_config_file(
        'config',
        None,
        'Path of a configuration file, or the name of one that comes with the package, and a '
        'variant if it has any: my_config.py, quickstart or imagenet128:feat32.',
    )


def checked_path(
    flag: flags.FlagHolder, check: Callable[[str, str], object] = paths.check_path
) -> flags.FlagHolder:
    """Has the value of a flag checked by `check(value, '--name')` when the command line is read."""

    def accept(value: str | None) -> bool:
        if value:
            check(value, f'--{flag.name}')
        return True

    flags.register_validator(flag, accept)
    return flag


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
    """Writes what a flag --json asks for, if it is given.

    Raises:
      UserError: if the file cannot be written.
    """
    if path is None:
        return
    with writing(path, 'another --json'), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')


def with_located_config(argv: list[str]) -> list[str]:
    """The arguments, with the path of the configuration in place of its name.

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


def run(
    main: Callable[[list[str]], None],
    config: flags.FlagHolder,
    modes: Mapping[str, Mode] | None = None,
    operands: bool = False,
) -> None:
    """Runs `main` with the flags of the command line, after `ending.prepare`.

    Settings of JAX with which the same seed gives another run are refused, see `numerics.check`.

    Args:
      main: takes the arguments that are not flags: the program's name, and the operands.
      config: from `define_config`.
      modes: the modes by the values of the flag --mode, if the program has one. --help groups the
        flags by mode, see `describe`, and a flag of another mode is refused.
      operands: whether the program takes arguments that are not flags, anywhere among these.
    """
    if operands:
        flags.FLAGS.set_gnu_getopt()  # flags may follow them

    def parse(argv: list[str]) -> list[str]:
        if not set(_HELP).isdisjoint(argv):
            print(describe(modes or {}))
            sys.exit()
        remaining = _parse(argv, config)
        if len(remaining) > 1 and not operands:
            raise UserError(f'Unexpected argument {remaining[1]!r}: see --help.')
        if modes:
            check_mode(modes)
        return remaining

    def checked(argv: list[str]) -> None:
        numerics.check()
        main(argv)

    cpu.restart_with_large_pages()
    cpu.prepare()
    absl_logging.set_verbosity(absl_logging.WARNING)
    _silence_failed_writes()
    output.drop_what_cannot_be_written()
    app.run(checked, flags_parser=parse)


def check_mode(modes: Mapping[str, Mode]) -> None:
    """Refuses a flag that belongs to modes other than the given --mode.

    Raises:
      UserError: naming the flag, its modes and the given mode.
    """
    given = flags.FLAGS['mode'].value
    for name in _owned(modes):
        owners = [mode for mode, (_, _, names) in modes.items() if name in names]
        if flags.FLAGS[name].present and given not in owners:
            raise UserError(
                f'--{name} belongs to --mode {" and ".join(owners)}, but the mode is {given}: '
                f'leave out --{name}, or choose another mode.'
            )


def describe(modes: Mapping[str, Mode]) -> str:
    """The text of --help: the program's docstring, its flags, the configurations.

    The flags that all modes share come before those of each mode.
    """
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    shared = ['config', *(name for name in own if name not in _owned(modes))]
    width = 1 + max(len(_with_dashes(name)) for name in [*own, 'config'])
    described: list[tuple[str, Iterable[str]]]
    described = [('In all modes:' if modes else 'Flags:', shared)]
    for name, (does, example, names) in modes.items():
        described.append((f'--mode {name}: {does}\n\n    {example}', names))
    groups = [_describe_flags(title, names, width) for title, names in described]
    groups.insert(0, sys.modules['__main__'].__doc__ or '')
    groups.append(_describe_configurations())
    return '\n\n'.join(group.rstrip() for group in groups)


def _describe_flags(title: str, names: Iterable[str], width: int) -> str:
    lines = [f'{title}\n']
    for name in names:
        flag = flags.FLAGS[name]
        default = f' (default: {(flag.default_as_str or "")[1:-1]})' if flag.default else ''
        lines.append(_entry(_with_dashes(name), flag.help + default, width))
    return '\n'.join(lines)


def _describe_configurations() -> str:
    """The configurations that come with the package, with the first lines of their docstrings."""
    found = {path.stem: ast.parse(path.read_text()) for path in files.paths()}
    width = 1 + max(map(len, found))
    entries = [
        _entry(name, (ast.get_docstring(tree) or '').partition('\n')[0], width)
        for name, tree in found.items()
    ]
    keys = f'{defaults.__file__} lists their keys, which --config.KEY=VALUE changes.'
    return '\n'.join(['Configurations:\n', *entries, '', keys])


def _entry(name: str, text: str, width: int) -> str:
    """Lines for a name in a column of `width`, with a text beside it."""
    start, space = f'  {name:<{width}} ', ' ' * (width + 3)
    return '\n'.join(textwrap.wrap(text, 96, initial_indent=start, subsequent_indent=space))


def _with_dashes(name: str) -> str:
    return f'--[no]{name}' if flags.FLAGS[name].boolean else f'--{name}'


def _owned(modes: Mapping[str, Mode]) -> list[str]:
    """Names of the flags that only some modes read."""
    return list(dict.fromkeys(name for mode in modes.values() for name in mode.flags))


def _silence_failed_writes() -> None:
    """Silences Orbax and TensorStore when a checkpoint cannot be written.

    They would add a thousand lines to the one sentence about it: an exception for each array and
    thread, logged and then raised.
    """
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
    """Parses flags; failures of absl and ml_collections become a `UserError`."""
    try:
        remaining = flags.FLAGS(with_located_config(argv))
        if config.value is not None:
            config.value.lock()  # raises if loading it failed
            paths.check_config(config.value)
        return remaining
    except ImportError as error:
        path = traceback.extract_tb(error.__traceback__)[-1].filename
        raise UserError(
            f'The configuration cannot be read, because an import in {path} fails ({error}): '
            'install the module, or put its folder on PYTHONPATH.'
        ) from error
    except SyntaxError as error:
        raise UserError(
            f'The configuration {error.filename} is not valid Python ({error.msg}, line '
            f'{error.lineno}): correct it.'
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
