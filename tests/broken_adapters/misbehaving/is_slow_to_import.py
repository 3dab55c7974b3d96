"""Computes something for a long while when it is imported."""

import hashlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

DIGEST = hashlib.pbkdf2_hmac("sha256", b"zoo", b"salt", 24_000_000)


class IsSlowToImport(SoundAdapter):
    declaration = it.AdapterDeclaration(name="zoo", level="model", contract="1.0")


adapter = IsSlowToImport()
