"""Finds configuration files by path, or by name if they come with the package."""

from pathlib import Path

from sagan_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """The folder of the package's files: inside an installed package, beside it in a checkout."""
    inside, beside = _PACKAGE / 'configs', _PACKAGE.parent / 'configs'
    return inside if inside.is_dir() else beside


def paths() -> list[Path]:
    """The package's files, in the order of their names."""
    return sorted(folder().glob('[!_]*.py'))


def names() -> list[str]:
    """The names of the package's files, such as 'quickstart'."""
    return [path.stem for path in paths()]


def locate(text: str) -> str:
    """Turns `PATH[:VARIANT]` or `NAME[:VARIANT]` into `PATH[:VARIANT]`. Existing paths win.

    Raises:
      UserError: if there is neither such a path nor such a name.
    """
    path, colon, variant = text.partition(':')
    if not Path(path).is_file():
        # Outside a checkout, configs/quickstart.py means the name too.
        name = path.removeprefix('configs/').removesuffix('.py')
        if name not in names():
            raise UserError(
                f'There is no configuration {path}: give the path of a file, or one of the names '
                f'{", ".join(names())}.'
            )
        path = str(folder() / f'{name}.py')
    return f'{path}{colon}{variant}'
