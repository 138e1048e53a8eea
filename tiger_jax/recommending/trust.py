"""Whose bundle it is: known by its manifest's hash, or by a signature of it.

The manifest has the hash of every other file. Its signature, Ed25519's 64 bytes, lies
beside it; the export writes it, or whoever has the key:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
    openssl pkeyutl -sign -rawin -inkey key.pem -in manifest.json -out manifest.sig
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError
from tiger_jax.workdir.artifacts import MANIFEST
from tiger_jax.workdir.durable import sync
from tiger_jax.workdir.reading import path_of

SIGNATURE = "manifest.sig"


@dataclasses.dataclass(frozen=True)
class Trust:
    """Which bundles may be loaded; any, unless told otherwise.

    Attributes:
        hashes: SHA-256 of manifests, one of which it must have; empty: any.
        public_key: A PEM file with the key that must have signed it; None: none must.
    """

    hashes: Sequence[str] = ()
    public_key: str | None = None

    def check(self, folder: Path) -> None:
        """Refuses another's bundle, by an InputError, before more of it is read."""
        path, signature = folder / MANIFEST, folder / SIGNATURE
        if not path.is_file():
            return  # no bundle: said by who reads it
        manifest = path.read_bytes()
        found = hashlib.sha256(manifest).hexdigest()
        if self.hashes and found not in self.hashes:
            raise InputError(
                f"{path} has the SHA-256 {found}, not the expected_hash: this is "
                "another bundle, or another's"
            )
        if self.public_key is None:
            return
        from cryptography.exceptions import InvalidSignature

        key = _read_key("public_key", self.public_key)
        if not signature.is_file():
            raise InputError(
                f"{folder} is not signed ({SIGNATURE} is missing), and public_key asks "
                "for it: sign it by --stage=export --gin.export.signing_key=KEY.PEM"
            )
        try:
            key.verify(signature.read_bytes(), manifest)
        except InvalidSignature:
            raise InputError(
                f"{signature} is no signature of {path} by the key {self.public_key}: "
                "another signed this bundle, or it is another than was signed"
            ) from None


ANY = Trust()


class Signer:
    """Signs bundles by a private key."""

    def __init__(self, key_file: str) -> None:
        """Reads the key; InputError if it is none."""
        self._key = _read_key("export.signing_key", key_file, is_private=True)

    def sign(self, folder: Path) -> None:
        """Signs a finished bundle: its signature is there whole, or not at all."""
        half = folder.with_name(f".{folder.name}.{SIGNATURE}")
        half.write_bytes(self._key.sign((folder / MANIFEST).read_bytes()))
        sync(half)
        half.rename(folder / SIGNATURE)
        sync(folder)


def _read_key(name: str, file: str, *, is_private: bool = False) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    wanted = ed25519.Ed25519PrivateKey if is_private else ed25519.Ed25519PublicKey
    try:
        pem = path_of(file).read_bytes()
        if is_private:
            key: Any = serialization.load_pem_private_key(pem, password=None)
        else:
            key = serialization.load_pem_public_key(pem)
        if isinstance(key, wanted):
            return key
        why = "it is one of another kind"
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = " ".join(str(error).split())[:200]
    raise InputError(
        f"{name}={file} is no Ed25519 key in PEM without a password ({why}): make one "
        "as SECURITY.md says"
    )
