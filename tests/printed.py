"""Finds the commands that documents, headers of scripts, docstrings and the notebook print."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).parents[1]
# What a command begins with. Each has a check, see test_printed_commands.py.
PROGRAMS = (
    *('python', 'python3', 'pip', 'uv', '~/.local/bin/uv', 'pre-commit', 'ruff', 'mypy', 'pytest'),
    *('launch/multi_gpu.sh', 'launch/slurm.sh', 'launch/tpu_pod.sh', 'sbatch', 'gcloud', 'kubectl'),
    *('docker', 'sky', 'git', 'cd', 'source', '.', 'curl', 'tensorboard', 'hf', 'gcsfuse', 'wsl'),
)


class Command(NamedTuple):
    """One simple command, split into words as a shell does, and the file that prints it."""

    file: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.file}: {shlex.join(self.words)}'


def commands() -> list[Command]:
    """Every printed command, each file's own in its order, without repetitions."""
    found = {}
    for path in files():
        for text in _programs(path):
            for words in split(text):
                found[Command(str(path.relative_to(ROOT)), tuple(words))] = None
    return list(found)


def files() -> list[Path]:
    """The files of the project that print commands."""
    return [
        *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'Dockerfile')),
        *sorted((ROOT / 'docs').glob('*.md')),
        *sorted(path for path in (ROOT / 'launch').iterdir() if path.suffix in SUFFIXES),
        *(
            path
            for folder in ('configs', 'launch', 'sagan_jax')
            for path in sorted((ROOT / folder).rglob('*.py'))
        ),
    ]


SUFFIXES = ('.sh', '.yaml', '.txt', '.ipynb')


def split(text: str) -> Iterator[list[str]]:
    """Splits lines of shell into simple commands: at line breaks, `&&`, `;` and pipes."""
    text = re.sub(r'(^|[ \t])#.*', '', text.replace('\\\n', ' '), flags=re.MULTILINE)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=';&|\n')
    lexer.whitespace, lexer.commenters = ' \t', ''
    lexer.whitespace_split = True
    words: list[str] = []
    for token in lexer:
        if set(token) <= set(';&|\n'):
            if words:
                yield words
            words = []
        else:
            words.append(token)
    if words:
        yield words


def _programs(path: Path) -> Iterator[str]:
    """Pieces of shell in a file."""
    text = path.read_text()
    if path.suffix == '.md':
        yield from _in_markdown(text)
    elif path.suffix == '.ipynb':
        for cell in nbformat.reads(text, 4).cells:
            if cell.cell_type == 'markdown':
                yield from _in_markdown(cell.source)
            yield from re.findall(r'^[!%](pip .*)', cell.source, re.MULTILINE)
    elif path.suffix == '.py':
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield from _indented(ast.get_docstring(node, clean=False) or '')
            elif isinstance(node, ast.Constant) and re.match(
                r'python -m \S+ --.*\S$', str(node.value)
            ):
                yield node.value  # an example in --help
    else:
        header = text.removeprefix('#!/usr/bin/env bash\n')
        comments = re.match(r'(#.*\n)*', header)
        yield from _indented(re.sub(r'^#', '', comments[0], flags=re.MULTILINE))


def _in_markdown(text: str) -> Iterator[str]:
    yield from re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
    prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    for code in re.findall(r'`([^`]+)`', prose):
        words = code.split()
        if len(words) > 1 and words[0] in PROGRAMS:
            yield ' '.join(words)


def _indented(text: str) -> Iterator[str]:
    """Indented lines that begin with a program, with the lines that continue them."""
    lines = iter(text.splitlines())
    for line in lines:
        words = line.split()
        if line.startswith('  ') and words and words[0] in PROGRAMS:
            command = [line]
            while command[-1].endswith('\\'):
                command.append(next(lines))
            yield '\n'.join(command)
