"""Keyed signatures over envelopes. A key is derived per direction and scope, so that a signed call cannot be moved to
another deployment, nor a call be passed off as a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b, sha256
from hmac import compare_digest

from qserve.errors import SignatureError

MAC_BYTES = 16
UNSIGNED = 0
# Above this size SHA-256 of the body is signed instead of the body: processors compute SHA-256 in hardware, and
# blake2b takes twice as long on large inputs (docs/design/protocol.md).
_DIGEST_ABOVE = 4096
# Scopes come from request ids too, which anybody may make up: more than this many are not remembered.
_MOST_SIGNERS = 4096


class Direction(StrEnum):
    """What an envelope is for."""

    CALL = "call"
    REPLY = "reply"
    CONTROL = "control"


class Signer:
    """Signs and verifies for one direction and scope.

    kid  the id of the key that signs; UNSIGNED when the ring is empty
    """

    __slots__ = ("_keys", "_sign_key", "kid", "mac_bytes")

    def __init__(self, keys: dict[int, bytes], kid: int) -> None:
        self._keys = keys
        self.kid = kid
        self._sign_key = keys.get(kid, b"")
        self.mac_bytes = 0 if kid == UNSIGNED else MAC_BYTES

    def sign(self, head: bytes, payload: bytes | memoryview) -> bytes:
        """The signature that stands behind `head` and `payload`; empty when unsigned."""
        return _mac(self._sign_key, head, payload) if self.kid else b""

    def verify(self, kid: int, body: memoryview, mac: memoryview) -> None:
        """Raises SignatureError unless `mac` is the signature of `body` by a key of the ring."""
        if not self.kid and not kid:
            return
        if not kid:
            raise SignatureError("It is unsigned, and this process has a secret key: only signed data is opened.")
        if not self.kid:
            raise SignatureError("It is signed, and this process has no secret key. Set QSERVE_SECRET_KEY to the same.")
        key = self._keys.get(kid)
        if key is None:
            raise SignatureError(
                f"It is signed with key {kid:08x}, which is not in this process's ring "
                f"({', '.join(f'{known:08x}' for known in self._keys)}). Set QSERVE_SECRET_KEY to the same secret."
            )
        if not compare_digest(_mac(key, b"", body), bytes(mac)):
            raise SignatureError("Its signature is wrong: the bytes were changed, or belong to something else.")


class KeyRing:
    """The process's secrets. The first signs, all verify."""

    def __init__(self, secrets: Sequence[bytes] = ()) -> None:
        self._secrets = {key_id(secret): secret for secret in secrets}
        self._newest = key_id(secrets[0]) if secrets else UNSIGNED
        self._signers: dict[tuple[Direction, str], Signer] = {}

    @property
    def signs(self) -> bool:
        """Whether there is a key."""
        return self._newest != UNSIGNED

    def signer(self, direction: Direction, scope: str) -> Signer:
        """The signer for one direction and scope; remembered for calls and replies, specs and code are rare."""
        signer = self._signers.get((direction, scope))
        if signer is None:
            keys = {kid: _derive(secret, direction, scope) for kid, secret in self._secrets.items()}
            signer = Signer(keys, self._newest)
            if direction is not Direction.CONTROL:
                self._remember(direction, scope, signer)
        return signer

    def _remember(self, direction: Direction, scope: str, signer: Signer) -> None:
        if len(self._signers) >= _MOST_SIGNERS:
            self._signers.clear()
        self._signers[direction, scope] = signer


def key_id(secret: bytes) -> int:
    """32 bits that name a secret without giving it away; never 0."""
    return int.from_bytes(blake2b(secret, digest_size=4, person=b"qserve-kid").digest()) or 1


def _derive(secret: bytes, direction: Direction, scope: str) -> bytes:
    long_secret = sha256(secret).digest()
    return blake2b(f"{direction}|{scope}".encode(), key=long_secret, digest_size=32, person=b"qserve-derive").digest()


def _mac(key: bytes, head: bytes, payload: bytes | memoryview) -> bytes:
    """The MAC of `head` and `payload` as one body, which is not joined: large payloads are not copied."""
    if len(head) + len(payload) > _DIGEST_ABOVE:
        body = sha256(head)
        body.update(payload)
        return blake2b(b"sha256:" + body.digest(), key=key, digest_size=MAC_BYTES).digest()
    return blake2b(head + payload, key=key, digest_size=MAC_BYTES).digest()
