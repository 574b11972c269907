"""What is sealed can be opened, by who shares the secret."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.config import PROTOCOL_VERSION
from qserve.errors import SignatureError, UsageError
from qserve.wire.messages import (
    Call,
    Outcome,
    Reply,
    Serializer,
    UnreadableVersion,
    open_call,
    open_control,
    open_reply,
    peek_call,
    seal_call,
    seal_control,
    seal_reply,
)
from qserve.wire.signing import Direction, KeyRing, Signer

SCOPE = "ns:app:Adder"
RINGS = st.sampled_from([KeyRing(), KeyRing([b"a-secret-of-this-test"])])
CALL_IDS = st.binary(min_size=16, max_size=16)
# Above 4 KiB the digest of the body is signed instead of the body.
PAYLOADS = st.one_of(st.binary(max_size=64), st.integers(4000, 4200).map(bytes), st.just(bytes(100_000)))
TEXTS = st.text('a_0é漢\0"\\', max_size=40)  # not all of Unicode: Hypothesis takes seconds to list it
CALLS = st.builds(
    Call,
    call_id=CALL_IDS,
    method=TEXTS,
    inbox=st.text("inbox:0123", max_size=60),
    payload=PAYLOADS,
    serializer=st.sampled_from(Serializer),
    flags=st.integers(0, 255),
    deadline_ms=st.integers(0, 2**64 - 1),
    context=st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(TEXTS, max_size=3)), max_size=3),
)
REPLIES = st.builds(
    Reply,
    call_id=CALL_IDS,
    outcome=st.sampled_from(Outcome),
    payload=PAYLOADS,
    serializer=st.sampled_from(Serializer),
    flags=st.integers(0, 255),
)
SIGNER = KeyRing([b"a-secret-of-this-test"]).signer(Direction.CALL, SCOPE)


@settings(max_examples=50, deadline=None)
@given(CALLS, RINGS)
def test_a_call_arrives_as_it_was_sent(call: Call, ring: KeyRing):
    """Whatever the method, the context and the size: the replica sees what the caller meant."""
    signer = ring.signer(Direction.CALL, SCOPE)
    sealed = seal_call(call, signer)

    assert open_call(sealed, signer) == call
    assert peek_call(sealed) == (call.call_id, call.inbox)


@settings(max_examples=30, deadline=None)
@given(REPLIES, RINGS)
def test_a_reply_arrives_as_it_was_sent(reply: Reply, ring: KeyRing):
    """The caller gets the outcome that the replica gave, for the call that it was given for."""
    signer = ring.signer(Direction.REPLY, SCOPE)

    assert open_reply(seal_reply(reply, signer), signer) == reply


@settings(max_examples=20, deadline=None)
@given(PAYLOADS, RINGS)
def test_a_control_message_arrives_as_it_was_sent(payload: bytes, ring: KeyRing):
    """Specs and code are what was deployed, byte for byte."""
    signer = ring.signer(Direction.CONTROL, "ns")

    assert open_control(seal_control(payload, signer), signer) == payload


def test_a_call_may_wait_for_thousands_of_responses():
    """A fan-in over every page of a book is one call; each input adds its id to the context."""
    context = {"inputs": [f"default.Summarizer.{number:032x}" for number in range(5000)]}
    call = Call(bytes(16), "join", "inbox", b"", context=context)

    assert open_call(seal_call(call, SIGNER), SIGNER).context == context


def test_a_method_name_that_does_not_fit_is_refused_in_words():
    """The envelope has one byte for its length; the caller gets a sentence instead of an error of struct."""
    with pytest.raises(UsageError, match=r"The method name 'aaaaaaaaaaaaaaaaaaaa'... has 300 bytes"):
        seal_call(Call(bytes(16), "a" * 300, "inbox", b""), SIGNER)


@pytest.mark.parametrize("signer", [SIGNER, KeyRing().signer(Direction.CALL, SCOPE)], ids=["signed", "unsigned"])
def test_another_version_is_told_apart_from_garbage(signer: Signer):
    """In a rolling upgrade such a call is handed to a replica that can read it; garbage is quarantined."""
    sealed = bytearray(seal_call(Call(bytes(16), "m", "inbox", b""), signer))
    sealed[2] = PROTOCOL_VERSION + 1

    with pytest.raises(UnreadableVersion, match=f"version is {PROTOCOL_VERSION + 1}; this process reads"):
        open_call(bytes(sealed), signer)


def test_opening_copies_no_payload():
    """A large argument would otherwise be held twice, once in the envelope and once beside it."""
    sealed = seal_call(Call(bytes(16), "m", "inbox", bytes(1000)), SIGNER)
    payload = open_call(sealed, SIGNER).payload

    assert isinstance(payload, memoryview)
    assert payload.obj is sealed


def test_unreadable_versions_are_signature_errors():
    """Who only wants to know whether bytes may be opened catches one class."""
    assert issubclass(UnreadableVersion, SignatureError)
