"""Reads a pickle as data: nothing that it names is imported, and nothing is called.

The standard library's `pickletools` splits a pickle into operations. These are carried out here on
plain values alone, so that whatever a pickle asks for, the result is built from numbers, text,
lists, dictionaries and `Unknown`.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_OPERATIONS = 1_000_000  # a training checkpoint of 600 tensors has 40,000

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY: dict[str, Callable[[], Any]] = {
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_DICT': dict,
    'EMPTY_SET': lambda: Unknown('set'),
}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_PUT, _GET = ('PUT', 'BINPUT', 'LONG_BINPUT'), ('GET', 'BINGET', 'LONG_BINGET')
_PLAIN_KEYS = (str, bytes, int, float, type(None))


class Unknown:
    """What a pickle names or makes of a name: inert, and compared by identity.

    Attributes:
      name: the module and the name with a space between, as in 'numpy dtype'.
      arguments: those of the call that the pickle asks for; None for the name itself.
    """

    __slots__ = ('arguments', 'name')

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name, self.arguments = name, arguments

    def __repr__(self) -> str:
        return f'Unknown({self.name!a})'


def load(
    file: BinaryIO,
    build: Callable[[str, tuple], Any] = Unknown,
    persistent: Callable[[Any], Any] = lambda identity: Unknown('persistent'),
) -> Any:
    """Reads one pickle from a file, which is left behind it.

    Args:
      file: should be in memory, since a pickle may claim strings of any length.
      build: `build(name, arguments)` makes what a call of `name` stands for.
      persistent: makes what a persistent identity stands for.

    Returns:
      The value. OrderedDict becomes dict, and the attributes of objects are left out.

    Raises:
      ValueError: if this is not a pickle, or one of more than `MAX_OPERATIONS` operations. So do
        `build` and `persistent` if they raise it.
    """
    machine = _Machine(build, persistent)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count == MAX_OPERATIONS:
                raise ValueError(f'its pickle has more than {MAX_OPERATIONS:,} operations')
            machine.run(operation.name, argument)
        (value,) = machine.stack
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError('its pickle is damaged') from error
    return value


class _Machine:
    """The stack, the memo, and what the operations of a pickle do to them."""

    def __init__(self, build: Callable[[str, tuple], Any], persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._marks: list[list[Any]] = []  # the stacks below each mark
        self._make, self._resolve = build, persistent

    def run(self, name: str, argument: Any) -> None:
        """Carries out an operation, by its name in `pickletools`."""
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PUT:
            self._memo[argument] = stack[-1]
        elif name == 'MEMOIZE':
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [self._last(_TUPLES[name])]
        elif handler := getattr(self, f'_{name.lower()}', None):
            handler(argument)
        elif argument is not None and name != 'PROTO' and name != 'FRAME':
            stack.append(argument)  # a number or a string
        elif name not in ('PROTO', 'FRAME', 'STOP'):
            raise ValueError(f'its pickle has the operation {name}')

    def _last(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise IndexError
        return tuple(self.stack[-count:])

    # ---- Marks. --------------------------------------------------------------------------------

    def _mark(self, _: None) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self._marks.pop()
        return found

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    # ---- Containers. ---------------------------------------------------------------------------

    def _tuple(self, _: None) -> None:
        found = self._since_mark()
        self.stack.append(tuple(found))

    def _list(self, _: None) -> None:
        found = self._since_mark()
        self.stack.append(found)

    def _frozenset(self, _: None) -> None:
        self._since_mark()
        self.stack.append(Unknown('frozenset'))

    def _dict(self, _: None) -> None:
        found = self._since_mark()
        self.stack.append({})
        self._set(found)

    def _append(self, _: None) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self, _: None) -> None:
        found = self._since_mark()
        self._extend(found)

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _setitem(self, _: None) -> None:
        found = list(self._last(2))
        del self.stack[-2:]
        self._set(found)

    def _setitems(self, _: None) -> None:
        found = self._since_mark()
        self._set(found)

    def _set(self, found: list[Any]) -> None:
        """Sets keys and values, which alternate, of the dictionary on top of the stack."""
        for key, value in zip(found[::2], found[1::2], strict=True):
            if isinstance(self.stack[-1], dict):
                # Other keys may be nested so deeply that hashing them overflows C's stack.
                plain = isinstance(key, _PLAIN_KEYS)
                self.stack[-1][key if plain else Unknown('key', (key,))] = value

    # ---- Names and calls. ----------------------------------------------------------------------

    def _global(self, name: str) -> None:
        self.stack.append(Unknown(name))

    def _stack_global(self, _: None) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        if not (isinstance(module, str) and isinstance(name, str) and len(module + name) < 1000):
            raise TypeError
        self.stack.append(Unknown(f'{module} {name}'))

    def _ext1(self, code: int) -> None:
        self.stack.append(Unknown(f'extension {code}'))

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: None) -> None:
        called, arguments = self._last(2)
        del self.stack[-2:]
        self.stack.append(self._call(called, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        called, arguments, _keywords = self._last(3)
        del self.stack[-3:]
        self.stack.append(self._call(called, arguments))

    def _inst(self, name: str) -> None:
        found = self._since_mark()
        self.stack.append(self._call(Unknown(name), tuple(found)))

    def _obj(self, _: None) -> None:
        called, *arguments = self._since_mark()
        self.stack.append(self._call(called, tuple(arguments)))

    def _call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Unknown) or called.arguments is not None:
            return Unknown('call')
        if not isinstance(arguments, tuple):
            raise TypeError
        if called.name == 'collections OrderedDict' and not arguments:
            return {}
        return self._make(called.name, arguments)

    def _build(self, _: None) -> None:
        """Leaves out the attributes of an object, such as `_metadata` of a state dictionary."""
        self.stack.pop()

    def _persid(self, identity: str) -> None:
        self.stack.append(self._resolve(identity))

    def _binpersid(self, _: None) -> None:
        self.stack.append(self._resolve(self.stack.pop()))
