"""Signatures: who made a bundle, its index and its ranker. Digests prove only that nothing was changed by accident.

Each of the three folders has a manifest with the digest of every file in it. A manifest may have a signature of its
bytes (Ed25519), which thereby covers the whole folder. The private key stays where bundles are trained; a service names
a file of public keys and then reads nothing that none of them signed. Keys are PEM files, as `openssl genpkey
-algorithm ed25519` writes them as well; a file of public keys may hold several, so that one can replace another.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import DataError
from features.files import atomic_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "TOWERS_SIGNING_KEY"
"""Path of the private key with which `towers train`, `index` and `train-ranker` sign what they write."""
SUFFIX = ".sig"
"""Suffix of a signature's file name, after that of its manifest."""
MOST_SIGNATURE_BYTES = 1024

# Signed with the manifest, so that a signature of ours never fits something else that the key might sign.
_CONTEXT = b"two-towers manifest 1\n"
_LARGEST_FILE = 1 << 20
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\s*", re.DOTALL)


class SignatureError(ValueError):
    """A manifest is unsigned or signed by an untrusted key; the message says which, and gives the remedy."""


def signature_of(manifest: Path) -> Path:
    """Return where the signature of a manifest is."""
    return manifest.with_name(f"{manifest.name}{SUFFIX}")


def make_key(path: Path) -> Path:
    """Write a new private key, readable by its owner only, and its public key, whose path is returned.

    Raises:
        DataError: One of the files is there already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name}.pub")
    for one in (path, public):
        if one.exists():
            raise DataError(f"{one}: exists, and a key is never replaced; name another file")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Return a private key.

    Raises:
        DataError: There is none, it is of another kind, or others than its owner may read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if path.stat().st_mode & 0o077:
            raise DataError(f"{path}: others than its owner may read this private key; type: chmod 600 {path}")
        key = load_pem_private_key(_read(path), password=None)
    except FileNotFoundError:
        raise DataError(f"{path}: no such private key; `towers keygen {path}` makes one") from None
    except OSError as error:
        raise DataError(f"{path}: the private key cannot be read ({error.strerror})") from None
    except DataError:
        raise
    except (ValueError, TypeError):  # what is in the file is not quoted
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(
            f"{path}: expected an Ed25519 private key in PEM without a passphrase; `towers keygen` makes one"
        )
    return key


def signing_key(environment: Mapping[str, str] | None = None) -> Ed25519PrivateKey | None:
    """Return the private key that the environment names; None where it names none.

    Raises:
        DataError: As `read_signing_key` does.
    """
    path = (os.environ if environment is None else environment).get(KEY_VARIABLE)
    return read_signing_key(Path(path)) if path else None


def sign(manifest: Path, key: Ed25519PrivateKey | None) -> None:
    """Write the signature of a manifest; without a key, remove an old one."""
    place = signature_of(manifest)
    if key is None:
        place.unlink(missing_ok=True)
        return
    made = base64.b64encode(key.sign(_CONTEXT + manifest.read_bytes())).decode()
    with atomic_file(place) as temporary:
        temporary.write_text(f"ed25519 {key_id(key.public_key())} {made}\n", encoding="ascii")


def key_id(key: Ed25519PublicKey) -> str:
    """Return a short name of a public key: the first 16 digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_trusted_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """Return the public keys in a file, by `key_id`.

    Raises:
        DataError: It cannot be read, holds none, or one of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        blocks = _PEM.findall(_read(path))
        keys = [load_pem_public_key(block) for block in blocks]
    except OSError as error:
        raise DataError(
            f"trusted_keys: {path}: cannot be read ({error.strerror}); name a file of public keys, as `towers keygen` "
            "writes one"
        ) from None
    except ValueError:
        keys = []
    trusted = {key_id(key): key for key in keys if isinstance(key, Ed25519PublicKey)}
    if not trusted or len(trusted) < len(set(blocks)):
        raise DataError(
            f"trusted_keys: {path}: expected Ed25519 public keys in PEM and nothing else, found "
            f"{len(trusted)} in {len(blocks)} blocks; `towers keygen` writes them"
        )
    return trusted


def prove(manifest: Path, content: bytes, signature: bytes | None, trusted: Path) -> None:
    """Make sure that a trusted key signed a manifest.

    Args:
        manifest: Where it was found; messages name it.
        content: What was read of it, and what is used of it from then on.
        signature: What was read of its signature. None: there is none that could be read.
        trusted: A file of public keys.

    Raises:
        SignatureError: It is not signed, or not by one of these keys.
        DataError: The public keys cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    keys = read_trusted_keys(trusted)
    remedy = "sign it with `towers sign` where it was made, or leave out trusted_keys"
    if signature is None:
        raise SignatureError(
            f"{manifest}: not signed (there is no {signature_of(manifest).name}), and only what the keys of {trusted} "
            f"signed is used; {remedy}"
        )
    try:
        kind, name, encoded = signature.decode("ascii").split()
        made = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise SignatureError(f"{signature_of(manifest)}: not a signature; {remedy}") from None
    if kind != "ed25519" or name not in keys:
        raise SignatureError(
            f"{manifest}: signed with the key {name[:16]!r}, which is not in {trusted} ({', '.join(keys)}); add that "
            f"key if you trust it, or {remedy}"
        )
    try:
        keys[name].verify(made, _CONTEXT + content)
    except InvalidSignature:
        raise SignatureError(
            f"{manifest}: was changed after it was signed; copy it again from where it was made"
        ) from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"more than {_LARGEST_FILE:,} bytes")
    return content
