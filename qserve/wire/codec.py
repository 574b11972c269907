"""Values to bytes and back: pickle 5 with buffers out of band, cloudpickle where pickle cannot, or JSON.

Loading a pickle runs code: callers verify the envelope first.
"""

from __future__ import annotations

import json
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from struct import Struct
from typing import Any, SupportsIndex

from qserve import errors
from qserve.config import MAX_PAYLOAD_BYTES
from qserve.errors import PayloadTooLarge, QserveError, RemoteError, RemoteTraceback, SerializationError
from qserve.wire.messages import FLAG_BUFFERS, Outcome, Reply, Serializer

_LENGTH = Struct(">I")
_APART_BYTES = 64 * 1024
_NOTE = "Remote traceback:\n"
_OUTSIDE = threading.local()


class Encoded:
    """A payload with its flags, and the request ids of the responses that it refers to."""

    __slots__ = ("data", "flags", "references")

    def __init__(self, data: bytes, flags: int, references: list[str]) -> None:
        self.data = data
        self.flags = flags
        self.references = references


def note_reference(request_id: str) -> None:
    """Called while a response is pickled: lets the encoder list what the call waits for."""
    collected: list[str] | None = getattr(_OUTSIDE, "collected", None)
    if collected is not None:
        collected.append(request_id)


def resolved_inputs() -> Mapping[str, Any] | None:
    """The values of the responses that the arguments being loaded refer to; None when no call is being loaded."""
    inputs: Mapping[str, Any] | None = getattr(_OUTSIDE, "inputs", None)
    return inputs


@contextmanager
def _outside(name: str, value: Any) -> Iterator[None]:
    before = getattr(_OUTSIDE, name, None)
    setattr(_OUTSIDE, name, value)
    try:
        yield
    finally:
        setattr(_OUTSIDE, name, before)


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], serializer: int, what: str = "The call") -> Encoded:
    """The arguments of a call. Raises SerializationError that names the argument, PayloadTooLarge for `what`."""
    if serializer == Serializer.JSON:
        try:
            plain = _dump_json({"args": args, "kwargs": kwargs})
        except SerializationError as error:
            raise _blame(args, kwargs, error, _dump_json) from error
        check_size(what, len(plain), MAX_PAYLOAD_BYTES)
        return Encoded(plain, 0, [])
    references: list[str] = []
    _OUTSIDE.collected = references
    try:
        data, flags = _dump(([_apart(arg) for arg in args], {name: _apart(arg) for name, arg in kwargs.items()}), what)
    except PayloadTooLarge:
        raise
    except Exception as error:
        raise _blame(args, kwargs, error, _dump) from error
    finally:
        _OUTSIDE.collected = None
    return Encoded(data, flags, list(dict.fromkeys(references)))


def decode_arguments(
    payload: bytes | memoryview, serializer: int, flags: int, inputs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with `inputs` (by request id) in place of the responses among them."""
    if serializer == Serializer.JSON:
        record = json.loads(bytes(payload))
        return tuple(record["args"]), dict(record["kwargs"])
    with _outside("inputs", inputs):
        args, kwargs = _load(payload, flags)
    return tuple(args), kwargs


def encode_result(call_id: bytes, value: Any, serializer: int, what: str = "The result") -> Reply:
    """A reply with the call's result. Raises SerializationError when it cannot travel, PayloadTooLarge for `what`."""
    if serializer == Serializer.JSON:
        plain = _dump_json(value)
        check_size(what, len(plain), MAX_PAYLOAD_BYTES)
        return Reply(call_id, Outcome.DONE, plain, serializer)
    try:
        data, flags = _dump(_apart(value), what)
    except PayloadTooLarge:
        raise
    except Exception as error:
        raise SerializationError(f"The result, a {type(value).__qualname__}, cannot be pickled: {error}") from error
    return Reply(call_id, Outcome.DONE, data, serializer, flags)


def encode_error(call_id: bytes, error: BaseException, serializer: int, outcome: int = Outcome.FAILED) -> Reply:
    """A reply with an exception: itself where it survives pickling, always its class, text and traceback."""
    _drop_our_notes(error)
    text = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
    class_name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    facts = {"type": class_name, "message": _message(error), "traceback": text}
    if serializer == Serializer.JSON:
        return Reply(call_id, outcome, _dump_json(facts), serializer)
    return Reply(call_id, outcome, pickle.dumps((_portable(error), facts), protocol=5), serializer)


def decode_reply(reply: Reply) -> Any:
    """The result. Raises what the call raised: the original exception, its remote traceback as the cause."""
    if reply.outcome == Outcome.DONE:
        if reply.serializer == Serializer.JSON:
            return json.loads(bytes(reply.payload))
        return _load(reply.payload, reply.flags)
    raise rebuild_error(reply)


def rebuild_error(reply: Reply) -> BaseException:
    """The exception that a failed call's reply carries."""
    if reply.serializer == Serializer.JSON:
        blob, facts = None, json.loads(bytes(reply.payload))
    else:
        blob, facts = pickle.loads(reply.payload)  # noqa: S301 (verified by the envelope's signature)
    error = _original(blob)
    text = str(facts["traceback"])
    if error is None:
        error = _by_name(facts) or RemoteError(f"{facts['type']}: {facts['message']}", facts["type"], text)
    if text:
        _set(error, "__cause__", RemoteTraceback(text))
        _set(error, "__notes__", [*getattr(error, "__notes__", ()), f"{_NOTE}{text}"])
    if not isinstance(error, QserveError):
        _set(error, "traceback_str", text)
    return error


def check_size(what: str, size: int, limit: int) -> None:
    """Raises PayloadTooLarge with the size and the limit."""
    if size > limit:
        raise PayloadTooLarge(
            f"{what} has {size:,} bytes; the limit is {limit:,} for one call or reply. "
            "Store the data where the replicas can read it and pass its address."
        )


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute, also of a class that is frozen."""
    try:
        BaseException.__setattr__(error, name, value)
    except (AttributeError, TypeError):  # a property of that name
        return


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as cause:  # noqa: BLE001 (user code, which may raise anything)
        return f"<its text cannot be shown: {type(cause).__qualname__}>"


def _drop_our_notes(error: BaseException) -> None:
    """An error from another call has that call's traceback as its cause: here too, it would double with each hop."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        notes[:] = [note for note in notes if not str(note).startswith(_NOTE)]


def _portable(error: BaseException) -> bytes | None:
    """The exception as a pickle that was seen to load again; None where pickle fails either way."""
    try:
        data = _pickle(error, None)
        pickle.loads(data)  # noqa: S301 (our own bytes)
    except Exception:  # noqa: BLE001 (pickling runs user code, which may raise anything)
        return None
    return data


def _original(blob: bytes | None) -> BaseException | None:
    if blob is None:
        return None
    try:
        error = pickle.loads(blob)  # noqa: S301 (verified by the envelope's signature)
    except Exception:  # noqa: BLE001 (unpickling runs user code, which may raise anything)
        return None
    return error if isinstance(error, BaseException) else None


class _Apart:
    """Large bytes on their way into a pickle, which takes them out of band instead of copying and searching them."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[type[bytes], tuple[pickle.PickleBuffer]]:
        return (bytes, (pickle.PickleBuffer(self.data),))


def _apart(value: Any) -> Any:
    return _Apart(value) if type(value) is bytes and len(value) >= _APART_BYTES else value


def _by_name(facts: Mapping[str, str]) -> QserveError | None:
    """An error of our own, of which JSON carries the class's name and the text; None for any other."""
    module, _, name = facts["type"].rpartition(".")
    kind = getattr(errors, name, None) if module == errors.__name__ else None
    if not isinstance(kind, type) or not issubclass(kind, QserveError) or "__init__" in vars(kind):
        return None
    return kind(facts["message"])


def _dump_json(value: Any) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise SerializationError(f"JSON has no form for this value: {error}") from error


def _dump(value: Any, what: str = "The value") -> tuple[bytes, int]:
    """Pickle `value`; buffers such as arrays' data stand behind the pickle, without a copy in it.

    Raises PayloadTooLarge for `what` before large buffers are copied, and before their length exceeds 32 bits.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = _pickle(value, buffers)
    raws = [buffer.raw() for buffer in buffers]
    check_size(what, len(data) + sum(raw.nbytes for raw in raws), MAX_PAYLOAD_BYTES)
    if not raws:
        return data, 0
    sizes = [_LENGTH.pack(len(raws)), _LENGTH.pack(len(data)), *(_LENGTH.pack(raw.nbytes) for raw in raws)]
    return b"".join((*sizes, data, *raws)), FLAG_BUFFERS


def _pickle(value: Any, buffers: list[pickle.PickleBuffer] | None) -> bytes:
    """The pickle of `value`; its large buffers go to `buffers` instead, if there is such a list."""
    keep = None if buffers is None else buffers.append
    try:
        data = pickle.dumps(value, protocol=5, buffer_callback=keep)
        by_reference_to_main = b"__main__" in data
    except Exception:  # noqa: BLE001 (pickling runs user code; cloudpickle tries next)
        by_reference_to_main = True
    if not by_reference_to_main:
        return data
    import cloudpickle  # __main__ is another module in the replica: its classes travel by value

    if buffers:
        buffers.clear()
    by_value: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=keep)
    return by_value


def _load(payload: bytes | memoryview, flags: int) -> Any:
    if not flags & FLAG_BUFFERS:
        return pickle.loads(payload)  # noqa: S301 (verified by the envelope's signature)
    view = memoryview(payload)
    count = _LENGTH.unpack_from(view)[0]
    sizes = [_LENGTH.unpack_from(view, 4 * (1 + index))[0] for index in range(count + 1)]
    at = 4 * (count + 2)
    parts = []
    for size in sizes:
        parts.append(view[at : at + size])
        at += size
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 (verified by the envelope's signature)


def _blame(
    args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception, dump: Callable[[Any], object]
) -> SerializationError:
    way = "pickled" if dump is _dump else "sent as JSON"
    named = [(f"number {index + 1}", value) for index, value in enumerate(args)]
    named += [(repr(name), value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            dump(value)
        except Exception as cause:  # noqa: BLE001 (pickling runs user code, which may raise anything)
            return SerializationError(
                f"The argument {name}, a {type(value).__qualname__}, cannot be {way}: {cause}. "
                "Pass plain data, or build the object inside the replica."
            )
    return SerializationError(f"The arguments cannot be {way}: {error}")
