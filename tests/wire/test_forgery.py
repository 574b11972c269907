"""Loading a pickle runs code, so what was not signed by a holder of the secret is never opened."""

import pickle
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.errors import SignatureError
from qserve.wire import codec
from qserve.wire.keys import ClusterKeys
from qserve.wire.messages import (
    Call,
    Outcome,
    Reply,
    Serializer,
    open_call,
    open_control,
    open_reply,
    peek_call,
    seal_call,
    seal_control,
    seal_reply,
)
from qserve.wire.signing import Direction, KeyRing, Signer

Open = Callable[[bytes, Signer], object]
SCOPE = "ns:app:Adder"
RING, STRANGERS, UNSIGNED = KeyRing([b"the-secret-of-the-cluster"]), KeyRing([b"the-secret-of-others"]), KeyRing()
CALL = Call(bytes(range(16)), "add", "inbox", b"arguments", context={"request": "r"})
REPLY = Reply(bytes(range(16)), Outcome.DONE, b"result")
KINDS = ["call", "reply", "control"]
OPEN: dict[str, Open] = {"call": open_call, "reply": open_reply, "control": open_control}
LARGE = bytes(5000)  # above the size from which a digest is signed


def signer_of(kind: str, ring: KeyRing = RING, scope: str = SCOPE) -> Signer:
    """The signer for envelopes of that kind."""
    return ring.signer(Direction(kind), scope)


def sealed(kind: str, signer: Signer, payload: bytes = b"payload") -> bytes:
    """A small envelope of that kind."""
    if kind == "call":
        return seal_call(Call(CALL.call_id, "add", "inbox", payload, context={"request": "r"}), signer)
    return (
        seal_reply(Reply(CALL.call_id, Outcome.DONE, payload), signer)
        if kind == "reply"
        else seal_control(payload, signer)
    )


def refuses(kind: str, data: bytes, ring: KeyRing = RING) -> str:
    """Opening must fail as a matter of signature; returns the message."""
    with pytest.raises(SignatureError) as caught:
        OPEN[kind](data, signer_of(kind, ring))
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_can_be_changed(kind: str):
    """Header, names, payload and signature alike: each is covered, or checked before."""
    data = sealed(kind, signer_of(kind))
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= mask
            refuses(kind, bytes(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_a_large_body_can_be_changed(kind: str):
    """Above 4 KiB the body's digest is signed: it must cover the last byte as well as the first."""
    data = sealed(kind, signer_of(kind), LARGE)
    for position in (10, 40, 60, 2500, len(data) - 17, len(data) - 16, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 0x01
        refuses(kind, bytes(changed))


@pytest.mark.parametrize("ring", [RING, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_envelope_is_refused_at_any_length(kind: str, ring: KeyRing):
    """A write cut short must not be taken for a shorter message. Unsigned control messages have no length to check."""
    data = sealed(kind, signer_of(kind, ring))
    shortest = 10 if (kind, ring) == ("control", UNSIGNED) else len(data)
    for length in range(shortest):
        refuses(kind, data[:length], ring)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_envelope_is_refused(kind: str):
    """Nothing may ride along behind a valid envelope."""
    refuses(kind, sealed(kind, signer_of(kind)) + b"\0")
    if kind != "control":
        assert "truncated or padded" in refuses(kind, sealed(kind, signer_of(kind, UNSIGNED)) + b"\0", UNSIGNED)


@pytest.mark.parametrize("opened_as", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_envelope_is_no_other_kind(kind: str, opened_as: str):
    """A caller who may write calls must not be able to answer others' calls with them, or to deploy code."""
    if kind != opened_as:
        assert "kind" in refuses(opened_as, sealed(kind, signer_of(kind), bytes(100)))
        assert "kind" in refuses(opened_as, sealed(kind, signer_of(kind, UNSIGNED), bytes(100)), UNSIGNED)


def test_a_call_cannot_be_passed_off_as_a_reply_by_its_header():
    """The direction is part of the key: relabelling the kind leaves a wrong signature."""
    as_reply = seal_reply(REPLY, signer_of("call"))

    assert "signature is wrong" in refuses("reply", as_reply)


def test_a_call_cannot_be_moved_to_another_deployment():
    """Who may call `Echo` could otherwise have `Payments` run the same method with the same arguments."""
    elsewhere = seal_call(CALL, signer_of("call", scope="ns:app:Echo"))

    assert "belong to something else" in refuses("call", elsewhere)


@pytest.mark.parametrize("kind", KINDS)
def test_another_secret_is_named_without_giving_it_away(kind: str):
    """The usual cause is a worker started with last year's secret: the message tells which key, and what to set."""
    message = refuses(kind, sealed(kind, signer_of(kind, STRANGERS)))

    assert f"key {signer_of(kind, STRANGERS).kid:08x}" in message
    assert "Set QSERVE_SECRET_KEY" in message
    assert "the-secret" not in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_with_a_secret_opens_nothing_unsigned(kind: str):
    """Otherwise anyone who reaches Redis could leave the signature out."""
    assert "unsigned" in refuses(kind, sealed(kind, signer_of(kind, UNSIGNED), bytes(100)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_a_secret_says_so(kind: str):
    """It cannot tell whether signed data is genuine; the mend is to give it the secret."""
    assert "no secret key. Set QSERVE_SECRET_KEY" in refuses(kind, sealed(kind, signer_of(kind)), UNSIGNED)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_ours_is_refused(kind: str):
    """Somebody else's data under our key is neither read nor crashed on."""
    assert "not its mark" in refuses(kind, b"PK" + sealed(kind, signer_of(kind))[2:])
    assert "truncated" in refuses(kind, b"")


@pytest.mark.parametrize("elsewhere", [("code", "v2"), ("app", "v1"), ("seal",)], ids=" ".join)
def test_a_control_envelope_cannot_be_put_under_another_name(elsewhere: tuple[str, ...]):
    """Who can write to Redis without the key could bring old code back under a new version."""
    keys = ClusterKeys("ns")
    data = seal_control(b"pickled", RING.signer(Direction.CONTROL, keys.scope("code", "v1")))

    assert open_control(data, RING.signer(Direction.CONTROL, keys.scope("code", "v1"))) == b"pickled"
    with pytest.raises(SignatureError, match="belong to something else"):
        open_control(data, RING.signer(Direction.CONTROL, keys.scope(*elsewhere)))


songs: list[str] = []


def sing(song: str) -> None:
    """How a canary is heard."""
    songs.append(song)


class Canary:
    """Sings when it is loaded from a pickle."""

    def __reduce__(self):
        return (sing, ("loaded",))


@pytest.fixture
def canary() -> bytes:
    """A pickle that cannot be loaded in secret."""
    songs.clear()
    return pickle.dumps(((Canary(),), {}))


def test_the_canary_sings(canary: bytes):
    """Without this the next test would prove nothing."""
    data = sealed("call", signer_of("call"), canary)
    opened = open_call(data, signer_of("call"))
    assert songs == []

    codec.decode_arguments(opened.payload, Serializer.PICKLE, 0, {})
    assert songs == ["loaded"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_pickle_is_never_loaded(canary: bytes, kind: str):
    """The one promise that stands between a reachable Redis and code that runs on every host."""
    flipped = bytearray(sealed(kind, signer_of(kind), canary))
    flipped[-1] ^= 0x01
    forgeries = [bytes(flipped), sealed(kind, signer_of(kind, STRANGERS), canary)]
    forgeries += [sealed(kind, signer_of(kind, UNSIGNED), canary), sealed(kind, signer_of(kind), canary)[:-1]]
    for data in forgeries:
        refuses(kind, data)

    assert songs == []


HEADS = [sealed(kind, ring.signer(Direction(kind), SCOPE)) for kind in KINDS for ring in (RING, UNSIGNED)]
SIGNERS = [{kind: signer_of(kind, ring) for kind in KINDS} for ring in (RING, UNSIGNED)]
GARBAGE = st.one_of(
    st.binary(max_size=120),
    st.tuples(st.sampled_from(HEADS), st.integers(2, 60), st.binary(max_size=80)).map(lambda t: t[0][: t[1]] + t[2]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(GARBAGE, min_size=40, max_size=40))
def test_the_parser_survives_garbage(strings: list[bytes]):
    """2,000 strings, half of them with a genuine beginning: each is opened or refused, none raises anything else."""
    for data in strings:
        peek_call(data)
        for signers in SIGNERS:
            for kind, signer in signers.items():
                with suppress(SignatureError):
                    OPEN[kind](data, signer)


@pytest.mark.parametrize("context", [b"[" * 60_000, b'"text"', b"\xff", b"{"], ids=["deep", "text", "no utf-8", "cut"])
def test_a_context_that_is_no_table_is_refused(context: bytes):
    """An unsigned peer can write anything there, also what drives the JSON parser into its recursion limit."""
    whole = seal_call(Call(bytes(16), "", "", b""), signer_of("call", UNSIGNED))
    data = whole[:36] + len(context).to_bytes(4) + whole[40:] + context

    assert "context" in refuses("call", data, UNSIGNED)
