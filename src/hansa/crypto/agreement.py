"""Keys that two parties agree on, and what they seal with them: X25519, HKDF-SHA256, AES-GCM, of the cryptography
library.

Every derived key is bound to what it is for: the same pair of keys gives unrelated secrets for masks and for messages.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.core.errors import ProtocolError

PUBLIC_BYTES = 32
SEAL_BYTES = 12 + 16  # a nonce and a tag
Entropy = Callable[[int], bytes]


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key for one conversation.

    Args:
      secret: 32 bytes, never printed.
      public: 32 bytes.
    """

    secret: bytes = field(repr=False)
    public: bytes

    @classmethod
    def new(cls, entropy: Entropy) -> "KeyPair":
        """A key from fresh randomness."""
        return cls.of(entropy(32))

    @classmethod
    def of(cls, secret: bytes) -> "KeyPair":
        """The pair of this secret."""
        private = X25519PrivateKey.from_private_bytes(secret)
        pair = cls(secret, private.public_key().public_bytes_raw())
        pair.__dict__["_private"] = private
        return pair

    @functools.cached_property
    def _private(self) -> X25519PrivateKey:
        # Reading a secret costs as much as an exchange, since the library computes its public key.
        return X25519PrivateKey.from_private_bytes(self.secret)

    def agree(self, public: bytes, purpose: bytes, length: int = 32) -> bytes:
        """The secret shared with the holder of another key, for one purpose.

        Raises:
          ProtocolError: the other key is no X25519 key, or one of those that give everybody the same secret.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise ProtocolError(
                "a public key is malformed or of small order: its sender is broken or hostile."
            ) from None
        return HKDF(SHA256(), length, None, purpose).derive(shared)


def seal(key: bytes, content: bytes, associated: bytes, entropy: Entropy) -> bytes:
    """Encrypts and authenticates content, and what it belongs to: nonce, ciphertext and tag."""
    nonce = entropy(12)
    return nonce + AESGCM(key).encrypt(nonce, content, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Opens what `seal` made; ProtocolError if it was changed, or belongs to something else."""
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], associated)
    except (InvalidTag, ValueError):
        raise ProtocolError("a sealed message does not belong here, or was changed on its way.") from None
