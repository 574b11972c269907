"""Envelopes: a fixed header, names, a payload, a signature. Verified before anything in them is opened.

Call     header 44 bytes | method | inbox | context | payload | MAC
Reply    header 31 bytes | payload | MAC
Control  header 10 bytes | payload | MAC          (specs and code)
All integers are big endian; docs/design/protocol.md is normative and tests/wire/golden keeps the bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Any

from qserve.config import PROTOCOL_VERSION
from qserve.errors import SignatureError, UsageError
from qserve.wire.signing import UNSIGNED, Signer

MAGIC = b"qs"
KIND_CALL, KIND_REPLY, KIND_CONTROL = 1, 2, 3
FLAG_BUFFERS = 1

# magic, version, kind, serializer, flags, key id, call id, deadline ms, method, inbox, context and payload lengths
_CALL = Struct(">2sBBBBI16sQBBII")
# magic, version, kind, serializer, flags, key id, call id, outcome, payload length
_REPLY = Struct(">2sBBBBI16sBI")
# magic, version, kind, serializer, flags, key id
_PREFIX = Struct(">2sBBBBI")
REPLY_ID_AT = _PREFIX.size
_LONGEST_NAME = 255


class Serializer(IntEnum):
    """How a payload is encoded."""

    PICKLE = 0
    JSON = 1


class Outcome(IntEnum):
    """How a call ended."""

    DONE = 0
    FAILED = 1
    DEAD = 2
    CANCELLED = 3
    EXPIRED = 4


class UnreadableVersion(SignatureError):
    """It was written by another version of qserve: a process of that version can read it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call on its way to a replica.

    deadline_ms  server clock; 0 is none
    context      request id, references to other calls' results; empty for a plain call
    """

    call_id: bytes
    method: str
    inbox: str
    payload: bytes | memoryview
    serializer: int = Serializer.PICKLE
    flags: int = 0
    deadline_ms: int = 0
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """One call's answer on its way back."""

    call_id: bytes
    outcome: int
    payload: bytes | memoryview
    serializer: int = Serializer.PICKLE
    flags: int = 0


def seal_call(call: Call, signer: Signer) -> bytes:
    """The call's envelope. Raises UsageError for a method name that does not fit into it."""
    method, inbox = call.method.encode(), call.inbox.encode()
    if len(method) > _LONGEST_NAME:
        text = f"The method name {call.method[:20]!r}... has {len(method)} bytes; a call has room for {_LONGEST_NAME}."
        raise UsageError(text)
    context = json.dumps(call.context, separators=(",", ":")).encode() if call.context else b""
    header = _CALL.pack(
        MAGIC,
        PROTOCOL_VERSION,
        KIND_CALL,
        call.serializer,
        call.flags,
        signer.kid,
        call.call_id,
        call.deadline_ms,
        len(method),
        len(inbox),
        len(context),
        len(call.payload),
    )
    head = b"".join((header, method, inbox, context))
    return b"".join((head, call.payload, signer.sign(head, call.payload)))


def open_call(data: bytes, signer: Signer) -> Call:
    """Verify and parse a call's envelope. Raises SignatureError; UnreadableVersion for another protocol."""
    _verify(data, KIND_CALL, _CALL.size, signer)
    _m, _v, _k, serializer, flags, _kid, call_id, deadline, m_len, i_len, c_len, p_len = _CALL.unpack_from(data)
    inbox_at = _CALL.size + m_len
    context_at = inbox_at + i_len
    payload_at = context_at + c_len
    if payload_at + p_len + signer.mac_bytes != len(data):
        raise SignatureError(f"It is truncated or padded: {len(data)} bytes.")
    try:
        method, inbox = data[_CALL.size : inbox_at].decode(), data[inbox_at:context_at].decode()
        context = json.loads(data[context_at:payload_at]) if c_len else {}
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"Its names or its context cannot be read: {error}") from error
    if not isinstance(context, dict):
        raise SignatureError(f"Its context is a {type(context).__name__} where a table belongs.")
    return Call(
        call_id=call_id,
        method=method,
        inbox=inbox,
        payload=memoryview(data)[payload_at : payload_at + p_len],
        serializer=serializer,
        flags=flags,
        deadline_ms=deadline,
        context=context,
    )


def peek_call(data: bytes) -> tuple[bytes, str] | None:
    """Call id and inbox of a call that was not verified; None where even its header cannot be read.

    Good for naming the call in a note, never for acting on it.
    """
    if len(data) < _CALL.size or data[:2] != MAGIC or data[3] != KIND_CALL:
        return None
    fields = _CALL.unpack_from(data)
    inbox_at = _CALL.size + fields[8]
    inbox = data[inbox_at : inbox_at + fields[9]]
    return (fields[6], inbox.decode()) if inbox.isascii() else None


def seal_reply(reply: Reply, signer: Signer) -> bytes:
    """The reply's envelope."""
    header = _REPLY.pack(
        MAGIC,
        PROTOCOL_VERSION,
        KIND_REPLY,
        reply.serializer,
        reply.flags,
        signer.kid,
        reply.call_id,
        reply.outcome,
        len(reply.payload),
    )
    return b"".join((header, reply.payload, signer.sign(header, reply.payload)))


def open_reply(data: bytes, signer: Signer) -> Reply:
    """Verify and parse a reply's envelope. Raises SignatureError; UnreadableVersion for another protocol."""
    _verify(data, KIND_REPLY, _REPLY.size, signer)
    _m, _v, _k, serializer, flags, _kid, call_id, outcome, p_len = _REPLY.unpack_from(data)
    if _REPLY.size + p_len + signer.mac_bytes != len(data):
        raise SignatureError(f"It is truncated or padded: {len(data)} bytes.")
    payload = memoryview(data)[_REPLY.size : _REPLY.size + p_len]
    return Reply(call_id=call_id, outcome=outcome, payload=payload, serializer=serializer, flags=flags)


def seal_control(payload: bytes, signer: Signer) -> bytes:
    """The envelope of a spec or of code."""
    head = _PREFIX.pack(MAGIC, PROTOCOL_VERSION, KIND_CONTROL, 0, 0, signer.kid)
    return b"".join((head, payload, signer.sign(head, payload)))


def open_control(data: bytes, signer: Signer) -> bytes:
    """Verify a control envelope and return its payload. Raises SignatureError; UnreadableVersion."""
    _verify(data, KIND_CONTROL, _PREFIX.size, signer)
    return data[_PREFIX.size : len(data) - signer.mac_bytes]


def _verify(data: bytes, kind: int, header_size: int, signer: Signer) -> None:
    if len(data) < header_size + signer.mac_bytes:
        raise SignatureError(f"It is truncated: {len(data)} bytes are fewer than an envelope has.")
    magic, version, its_kind, _serializer, _flags, kid = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise SignatureError("It is no envelope of qserve: the first bytes are not its mark.")
    if version != PROTOCOL_VERSION:
        raise UnreadableVersion(f"Its protocol version is {version}; this process reads {PROTOCOL_VERSION}.")
    if its_kind != kind:
        raise SignatureError(f"It is an envelope of kind {its_kind} where kind {kind} belongs.")
    if kid == UNSIGNED and signer.kid == UNSIGNED:
        return
    end = len(data) - signer.mac_bytes
    view = memoryview(data)
    signer.verify(kid, view[:end], view[end:])
