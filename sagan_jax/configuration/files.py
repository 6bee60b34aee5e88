"""Configuration files: by path, or by the name of one that comes with the package."""

from pathlib import Path

from sagan_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Where the package's own files are: inside it once installed, beside it in the checkout."""
    inside, beside = _PACKAGE / 'configs', _PACKAGE.parent / 'configs'
    return inside if inside.is_dir() else beside


def names() -> list[str]:
    """The names of the package's own files, such as 'quickstart'."""
    return sorted(path.stem for path in folder().glob('[!_]*.py'))


def locate(text: str) -> str:
    """`PATH[:VARIANT]` or `NAME[:VARIANT]` as `PATH[:VARIANT]`. A path that exists wins.

    Raises:
      UserError: if there is neither such a path nor such a name.
    """
    path, colon, variant = text.partition(':')
    if not Path(path).is_file():
        # In the checkout configs/quickstart.py is a path; elsewhere it is the name with a frame.
        name = path.removeprefix('configs/').removesuffix('.py')
        if name not in names():
            raise UserError(
                f'There is no configuration {path}: give the path of a file, or one of the names '
                f'{", ".join(names())}.'
            )
        path = str(folder() / f'{name}.py')
    return f'{path}{colon}{variant}'
