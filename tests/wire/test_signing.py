"""Keys are derived for one direction and scope, and can be changed while calls are under way."""

import pytest

from qserve.errors import SignatureError
from qserve.wire.signing import MAC_BYTES, Direction, KeyRing, Signer, key_id

OLD, NEW = b"last-year's-secret-0", b"this-year's-secret-1"
BODIES = [b"small", bytes(5000)]


def mac_of(signer: Signer, body: bytes) -> bytes:
    """The signature of a body whose head is empty."""
    return signer.sign(b"", body)


def verifies(signer: Signer, kid: int, body: bytes, mac: bytes) -> bool:
    """Whether the signature is accepted."""
    try:
        signer.verify(kid, memoryview(body), memoryview(mac))
    except SignatureError:
        return False
    return True


@pytest.mark.parametrize("body", BODIES, ids=["small", "above 4 KiB"])
def test_each_direction_and_scope_has_a_key_of_its_own(body: bytes):
    """What one process may say in one place says nothing in another."""
    ring = KeyRing([NEW])
    signers = [ring.signer(direction, scope) for direction in Direction for scope in ("ns:a:D", "ns:b:D")]
    macs = [mac_of(signer, body) for signer in signers]

    assert len(set(macs)) == len(macs)
    for mine, mac in zip(signers, macs, strict=True):
        assert [verifies(signer, signer.kid, body, mac) for signer in signers] == [signer is mine for signer in signers]


@pytest.mark.parametrize("body", BODIES, ids=["small", "above 4 KiB"])
def test_head_and_payload_are_signed_as_one_body(body: bytes):
    """The sender signs them apart to save a copy, the receiver verifies them together: the border must not matter."""
    signer = KeyRing([NEW]).signer(Direction.CALL, "s")

    assert signer.sign(body[:3], body[3:]) == signer.sign(body, b"") == signer.sign(b"", memoryview(body))


def test_two_processes_derive_the_same_keys():
    """Nothing but the secret is shared between hosts."""
    one, other = (KeyRing([NEW]).signer(Direction.CALL, "s") for _ in range(2))

    assert verifies(other, one.kid, b"body", mac_of(one, b"body"))


def test_a_secret_can_be_changed_without_a_stop():
    """First every ring gets the new key, then all sign with it, then the old one goes: no call fails on the way."""
    before, during, after = (KeyRing(ring).signer(Direction.CALL, "s") for ring in ([OLD], [NEW, OLD], [NEW]))
    signed_before, signed_during = mac_of(before, b"body"), mac_of(during, b"body")

    assert during.kid == key_id(NEW)
    assert verifies(during, before.kid, b"body", signed_before)
    assert verifies(after, during.kid, b"body", signed_during)
    assert not verifies(after, before.kid, b"body", signed_before)


def test_a_key_id_tells_keys_apart_and_nothing_else():
    """It stands in clear in every envelope; 0 is kept for unsigned ones."""
    ids = {key_id(f"secret number {number}".encode()) for number in range(100)}

    assert len(ids) == 100
    assert 0 not in ids


def test_signers_are_remembered_only_so_far():
    """Scopes come from request ids, which a browser may send: a million made-up ones must not fill the memory."""
    ring = KeyRing()
    first = ring.signer(Direction.CALL, "ns:a:D")
    assert ring.signer(Direction.CALL, "ns:a:D") is first
    assert ring.signer(Direction.CONTROL, "ns:app:a") is not ring.signer(Direction.CONTROL, "ns:app:a")

    for number in range(4096):
        ring.signer(Direction.REPLY, f"ns:a:{number}")
    assert ring.signer(Direction.CALL, "ns:a:D") is not first


def test_an_empty_ring_signs_nothing():
    """Unsigned envelopes have no signature to carry: not even room for one."""
    signer = KeyRing().signer(Direction.CALL, "s")

    assert (signer.kid, signer.mac_bytes, mac_of(signer, b"body")) == (0, 0, b"")
    assert not KeyRing().signs
    assert verifies(signer, 0, b"body", b"")


def test_a_signature_has_sixteen_bytes():
    """Long enough that it cannot be guessed, short enough beside a small call."""
    assert len(mac_of(KeyRing([NEW]).signer(Direction.CALL, "s"), b"body")) == MAC_BYTES == 16


def test_a_signer_is_made_once():
    """Deriving a key costs more than signing a call."""
    ring = KeyRing([NEW])

    assert ring.signer(Direction.CALL, "s") is ring.signer(Direction.CALL, "s")
