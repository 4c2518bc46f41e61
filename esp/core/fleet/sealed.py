"""Messages between proxies, which are sealed with the secret that they share.

A seal is an HMAC: it shows that who sent the message knows the secret, without telling the secret. An answer's seal
covers the seal of its question, which has random bytes in it, so that no other answer can be put in its place.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

SEAL_BYTES: Final = 32
NONCE_BYTES: Final = 16
_QUESTION: Final = b"esp question"
_ANSWER: Final = b"esp answer"


class UnsealedError(Exception):
    """A message that nobody has sealed who knows the secret."""


def question(secret: bytes, body: bytes) -> bytes:
    """A question with its seal."""
    body = secrets.token_bytes(NONCE_BYTES) + body
    return _seal(secret, _QUESTION, body) + body


def asked(secret: bytes, message: bytes) -> bytes:
    """The body of a question.

    Raises:
        UnsealedError: it has not this secret's seal.
    """
    return _opened(secret, _QUESTION, message)[NONCE_BYTES:]


def answer(secret: bytes, to: bytes, body: bytes) -> bytes:
    """An answer to a sealed question, with its seal."""
    return _seal(secret, _ANSWER + to[:SEAL_BYTES], body) + body


def answered(secret: bytes, to: bytes, message: bytes) -> bytes:
    """The body of the answer to a sealed question.

    Raises:
        UnsealedError: it has not this secret's seal, or answers another question.
    """
    return _opened(secret, _ANSWER + to[:SEAL_BYTES], message)


def _opened(secret: bytes, kind: bytes, message: bytes) -> bytes:
    seal, body = message[:SEAL_BYTES], message[SEAL_BYTES:]
    if not secret or not hmac.compare_digest(seal, _seal(secret, kind, body)):
        raise UnsealedError
    return body


def _seal(secret: bytes, kind: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, kind + b"\0" + body, "sha256")
