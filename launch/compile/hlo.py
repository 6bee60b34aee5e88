"""Reads the text of a program that XLA has optimised.

The grammar is that of `HloModule::ToString`. A line of a computation is

  %name = SHAPE opcode(%operand, …), attribute=…, metadata={op_name="…"}, backend_config={…}
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SHAPE = re.compile(r'\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*)')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_BRANCH = re.compile(r'(?:branch_computations=\{|true_computation=)%?([\w.\-]+)')
_BRACKETS = {'(': 1, '{': 1, '[': 1, ')': -1, '}': -1, ']': -1}


class Shape(NamedTuple):
    """An array: its dtype, its dimensions, and whether it is in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = re.search(r'\d+', self.dtype)  # pred, of one byte, has none
        return 0 if self.dtype == 'token' else self.size * max(int(bits[0]) if bits else 8, 8) // 8

    def __str__(self) -> str:
        return f'{self.dtype}[{",".join(map(str, self.dims))}]'


class Operation(NamedTuple):
    """A line of a computation.

    Attributes:
      name: without the percent sign.
      shapes: of the results.
      opcode: as 'fusion'.
      operands: the names of the operands.
      attributes: the text behind the operands.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def source(self) -> str:
        """The path of the layer that the operation comes from; empty if unknown."""
        found = re.search(r'op_name="(.*?)"', self.attributes)
        return found[1] if found else ''

    @property
    def called(self) -> str | None:
        """The computation that a fusion or a call executes."""
        found = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', self.attributes)
        return found[1] if found else None


Computation = dict[str, Operation]


class Module(NamedTuple):
    """A program: its first line, its computations by name, and the name of the first to run."""

    header: str
    computations: dict[str, Computation]
    entry: str

    @property
    def operations(self) -> Iterator[Operation]:
        """All operations, those inside of fusions too."""
        for computation in self.computations.values():
            yield from computation.values()


def parse(text: str) -> Module:
    """Parses the text of a module.

    Raises:
      ValueError: if it is not that of an HLO module.
    """
    header, entry = '', ''
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if line.startswith('HloModule'):
            header = line
        elif current is not None and (found := _LINE.match(line)):
            current[found[1]] = _parse_operation(found[1], found[2])
        elif found := _COMPUTATION.match(line):
            current = computations[found[2]] = Computation()
            entry = found[2] if found[1] else entry
        elif line.startswith('}'):
            current = None
    if not entry:
        raise ValueError('There is no HLO module with an entry in this text.')
    return Module(header, computations, entry)


def _parse_operation(name: str, rest: str) -> Operation:
    end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index('(')
    end = start + _closing(rest[start:])
    operands = re.findall(r'%([\w.\-]+)', rest[start:end])
    return Operation(name, _shapes(shape), rest[:start], tuple(operands), rest[end + 1 :])


def _closing(text: str) -> int:
    """The index of the bracket that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += _BRACKETS.get(character, 0)
        if not depth:
            return index
    raise ValueError(f'A bracket is not closed in {text[:80]!r}.')


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(
            dtype,
            tuple(int(size) for size in dims.split(',') if size),
            not re.search(r'S\([1-9]', layout),  # other spaces are on the chip
        )
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def operand_shapes(computation: Computation, operation: Operation) -> list[Shape]:
    """The arrays among an operation's operands, those of tuples one by one."""
    known = (computation[name] for name in operation.operands if name in computation)
    return [shape for operand in known for shape in operand.shapes]


def executed(module: Module) -> Iterator[tuple[Computation, Operation, int]]:
    """All operations that a device executes, each with its computation and how often it runs.

    A loop runs as often as XLA found out, or once if it did not; of the branches of a conditional
    only the first is taken.
    """

    def walk(name: str, times: int) -> Iterator[tuple[Computation, Operation, int]]:
        computation = module.computations[name]
        for operation in computation.values():
            opcode, attributes = operation.opcode, operation.attributes
            if opcode == 'while' and (body := re.search(r'body=%?([\w.\-]+)', attributes)):
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes)
                yield from walk(body[1], times * (int(count[1]) if count else 1))
            elif opcode == 'conditional' and (branch := _BRANCH.search(attributes)):
                yield from walk(branch[1], times)
            elif opcode in ('call', 'async-start') and operation.called:
                yield from walk(operation.called, times)
            else:
                yield computation, operation, times

    return walk(module.entry, 1)


def aliased_outputs(module: Module) -> set[int]:
    """The outputs that take the place of an argument, whose memory was donated."""
    _, found, text = module.header.partition('input_output_alias=')
    listed = text[: _closing(text) + 1] if found else ''
    return {int(index or 0) for index in re.findall(r'\{(\d*)\}: \(\d+', listed)}
