"""What a device executes in a program: kernels, the products in them, and their bytes."""

import json
import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np

from launch.compile.hlo import Computation, Module, Operation, Shape, executed, operand_shapes

_CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')
_CUBLAS = re.compile(r'custom_call_target="__cublas\$')
_COLLECTIVES = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
    'collective-broadcast', 'ragged-all-to-all',
)  # fmt: skip
# These move no data.
_FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'domain',
    'opt-barrier', 'partition-id', 'replica-id',
)  # fmt: skip


class Convolution(NamedTuple):
    """A convolution as it is executed.

    Attributes:
      kind: 'convolution', or the name of the function of cuDNN.
      shapes: of both operands and of the result, as text.
      window: as HLO writes it. cuDNN's are those of the forward convolution in all directions.
      flop: of one execution, two for each product with an element that is no inserted zero. Zeros
        of the border and zeros that another kernel has written are counted.
      source: the path of the layer.
      times: how often a call of the program executes it.
    """

    kind: str
    shapes: str
    window: str
    flop: int
    source: str
    times: int = 1


class Kernel(NamedTuple):
    """What a device executes as one: usually a fusion of operations.

    Attributes:
      name, opcode: of its operation.
      shape: of its first results, as text.
      source: the path of the layer, that of a convolution or product if there is one.
      times: how often a call of the program executes it.
      flop: of its convolutions and matrix products, for one execution.
      bytes: of all operands and results in the device's main memory, for one execution.
      cycles: libtpu's estimate for one execution; None if there is none.
      collective: the bytes that it reduces or sends, if it is a collective.
    """

    name: str
    opcode: str
    shape: str
    source: str
    times: int
    flop: int
    bytes: int
    cycles: int | None
    collective: int


def find_kernels(module: Module) -> tuple[list[Kernel], list[Convolution]]:
    """All kernels that a call of the program executes, and the convolutions in them."""

    @cache
    def inside(name: str) -> tuple[list[Convolution], int, str]:
        """Convolutions of a fused computation, the flop of its products, and their source."""
        convolutions: list[Convolution] = []
        flop, source = 0, ''
        for operation in module.computations[name].values():
            found, more, path = products(module.computations[name], operation)
            convolutions, flop, source = convolutions + found, flop + more, source or path
        return convolutions, flop, source

    def products(
        computation: Computation, operation: Operation
    ) -> tuple[list[Convolution], int, str]:
        operands = operand_shapes(computation, operation)
        if convolution := _convolution(operation, operands):
            return [convolution], convolution.flop, operation.source
        if flop := _dot_flop(operation, operands):
            return [], flop, operation.source
        is_fused = operation.opcode == 'fusion' or operation.opcode.endswith('-start')
        return inside(operation.called) if is_fused and operation.called else ([], 0, '')

    all_kernels: list[Kernel] = []
    all_convolutions: list[Convolution] = []
    for computation, operation, times in executed(module):
        if operation.opcode in _FREE or operation.opcode.endswith(('-done', '-update')):
            continue
        convolutions, flop, source = products(computation, operation)
        all_convolutions += [c._replace(times=times) for c in convolutions]
        cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
        kernel = Kernel(
            name=operation.name,
            opcode=operation.opcode,
            shape=', '.join(map(str, operation.shapes[:2])),
            source=source or operation.source,
            times=times,
            flop=flop,
            bytes=_bytes(computation, operation),
            cycles=int(cycles[1]) if cycles else None,
            collective=_collective(computation, operation),
        )
        all_kernels.append(kernel)
    return all_kernels, all_convolutions


def _bytes(computation: Computation, operation: Operation) -> int:
    results: tuple[Shape, ...] = operation.shapes
    if operation.opcode.endswith('-start'):  # its shape repeats the operands
        results = results[:1]
    arrays = (*results, *operand_shapes(computation, operation))
    return sum(shape.bytes for shape in arrays if shape.in_memory)


def _collective(computation: Computation, operation: Operation) -> int:
    if operation.opcode.removesuffix('-start') not in _COLLECTIVES:
        return 0
    return sum(shape.bytes for shape in operand_shapes(computation, operation))


# ---- Convolutions and products. ----------------------------------------------------------------


def _convolution(operation: Operation, operands: list[Shape]) -> Convolution | None:
    """The convolution that an operation is, of XLA's own or of cuDNN; otherwise None."""
    cudnn = _CUDNN.search(operation.attributes)
    if operation.opcode != 'convolution' and not cudnn:
        return None
    window = re.search(r'window=\{([^}]*)\}', operation.attributes)
    labels = re.search(r'dim_labels=\w+_(\w+)->(\w+)', operation.attributes)
    assert labels, f'The convolution {operation.name} has no dim_labels.'
    text = window[1] if window else ''
    first, second, result = operands[0], operands[1], operation.shapes[0]
    if cudnn:  # labels and window are those of the forward convolution
        outputs = {'BackwardInput': first, 'BackwardFilter': second}.get(cudnn[1], result)
        kernel = result if cudnn[1] == 'BackwardFilter' else second
        flop = 2 * outputs.size * kernel.size // kernel.dims[labels[1].index('o')]
    else:
        sizes = [result.dims[i] for i in np.argsort(list(labels[2])) if labels[2][i].isdigit()]
        products = math.prod(_products(size, text, axis) for axis, size in enumerate(sizes))
        others = result.size // math.prod(sizes)
        flop = 2 * others * products * second.dims[labels[1].index('i')]
    kind = f'conv{cudnn[1]}' if cudnn else 'convolution'
    shapes = f'{first}, {second} → {result}'
    return Convolution(kind, shapes, text, flop, operation.source)


def _products(outputs: int, window: str, axis: int) -> int:
    """The products along an axis: pairs of an output and a tap that meet no inserted zero."""

    def of_axis(name: str, default: int) -> int:
        found = re.search(rf'\b{name}=(\S+)', window)
        return int(found[1].split('x')[axis].partition('_')[0]) if found else default

    taps = np.arange(of_axis('size', 1)) * of_axis('rhs_dilate', 1)
    starts = np.arange(outputs) * of_axis('stride', 1) - of_axis('pad', 0)
    return int(((starts[:, None] + taps) % of_axis('lhs_dilate', 1) == 0).sum())


def _dot_flop(operation: Operation, operands: list[Shape]) -> int:
    """The operations of a matrix product; 0 for any other operation."""
    if operation.opcode == 'dot':
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]+)\}', operation.attributes)
        dims = contracted[1].split(',') if contracted else []
    elif _CUBLAS.search(operation.attributes):
        numbers = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', operation.attributes)
        dims = json.loads(numbers[1]) if numbers else []
    else:
        return 0
    return 2 * operation.shapes[0].size * math.prod(operands[0].dims[int(dim)] for dim in dims)


# ---- What should not be there. -----------------------------------------------------------------


def written_zeros(module: Module) -> list[str]:
    """The pads that write zeros between the rows or columns of an image, as text.

    A convolution of the result multiplies by every zero, where one that is dilated itself does not.
    """
    return [
        f'{operation.shapes[0]} {padding[1]} {operation.source}'
        for operation in module.operations
        if operation.opcode == 'pad'
        and (padding := re.search(r'padding=([\d_x\-]+)', operation.attributes))
        and any(axis.count('_') == 2 and axis[-2:] != '_0' for axis in padding[1].split('x'))
    ]


def host_calls(module: Module) -> list[str]:
    """The names of all operations that wait for the host: callbacks, infeeds and the like."""
    return [
        operation.name
        for operation in module.operations
        if operation.opcode in ('infeed', 'outfeed', 'send', 'recv')
        or re.search(r'custom_call_target="[^"]*callback', operation.attributes)
    ]


def uses_float64(module: Module) -> bool:
    """Whether the program computes anything in double precision."""
    shapes = (shape for operation in module.operations for shape in operation.shapes)
    return any(shape.dtype in ('f64', 'c128') for shape in shapes)
