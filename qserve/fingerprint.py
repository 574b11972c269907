"""The version of a deployment: a hash of what its pickle builds, not of its bytes, which differ between processes.

Pure; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import pickletools
from itertools import count

from qserve.config import DeploymentConfig
from qserve.options import RESTARTING

# Whether equal constants are one object, and so whether a pickle repeats or remembers them, differs between processes.
_CONSTANTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "STACK_GLOBAL"})


def fingerprint(blob: bytes, config: DeploymentConfig, source: bytes = b"", salt: bytes = b"") -> str:
    """A deployment's version: equal for equal code, arguments and restarting options, in any process.

    blob    pickle of the class or function and its arguments
    source  of the module that defines it, when the pickle only names it
    salt    anything else that makes a version of its own
    """
    options = config.model_dump_json(include=set(RESTARTING))
    return _digest(_built_by(blob), options.encode(), source, salt).hex()[:16]


def _built_by(blob: bytes) -> bytes:
    """The digest of what a pickle builds. It follows the pickle's own stack, with digests in the place of objects.

    Two things that differ between processes and say nothing of the code are left out: the order of sets, and the random
    ids that cloudpickle gives to the classes it sends by value. Nothing is loaded.
    """
    stack: list[bytes] = []
    marks: list[int] = []
    memo: list[bytes] = []
    done: list[bytes] = []
    numbers, last = count(), ""
    for opcode, argument, _position in pickletools.genops(blob):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name == "MEMOIZE":  # a constant is known by its value, what may still grow by its number
            memo.append(stack[-1] if last in _CONSTANTS else _digest(b"memo", _text(next(numbers))))
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif opcode.name == "POP":  # what a call did to an object, such as to fill in a class body: its result is None
            done.append(stack.pop())
        elif opcode.name != "STOP":
            _step(stack, marks, opcode, _text(argument))
        last = opcode.name
    return _digest(stack[-1], *done)


def _step(stack: list[bytes], marks: list[int], opcode: pickletools.OpcodeInfo, argument: bytes) -> None:
    """Replace what an operation takes from the stack by the digest of what it makes of it."""
    items: list[bytes] = []
    fixed = len(opcode.stack_before)
    if pickletools.stackslice in opcode.stack_before:
        items = _pop(stack, marks.pop())
        fixed -= 2  # the mark and the slice above it
    if opcode.name in ("ADDITEMS", "FROZENSET"):
        items.sort()
    elif opcode.name == "TUPLE" and stack and stack[-1] in _SKELETONS:
        del items[-2:]  # the random id, and a place for extensions
    owners = _pop(stack, len(stack) - fixed)
    if opcode.stack_after:
        stack.append(_digest(opcode.name.encode(), argument, *owners, *items))


def _pop(stack: list[bytes], start: int) -> list[bytes]:
    popped = stack[start:]
    del stack[start:]
    return popped


def _text(argument: object) -> bytes:
    return bytes(argument) if isinstance(argument, bytes | bytearray) else repr(argument).encode()


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def _import_of(module: str, name: str) -> bytes:
    names = [_digest(b"SHORT_BINUNICODE", _text(text)) for text in (module, name)]
    return _digest(b"STACK_GLOBAL", _text(None), *names)


_SKELETONS = frozenset(
    _import_of("cloudpickle.cloudpickle", name) for name in ("_make_skeleton_class", "_make_skeleton_enum")
)
