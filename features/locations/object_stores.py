"""Connections to S3 (and what speaks its protocol) and to Google Cloud Storage, through pyarrow's file systems.

Credentials are those of the usual places: environment, configuration files, the machine's own role. None is ever part
of an address, and none is quoted in a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from features.errors import DataError, UnavailableError
from features.redaction import passwords_of, redacted

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONNECT_SECONDS = 5
"""Time-out of a connection to S3."""
SILENT_SECONDS = 15
"""Seconds without a byte after which a request to S3 is given up, to be tried again."""
ATTEMPTS = 3
"""How often a request to S3 is made before it has failed."""
RETRY_SECONDS = 30
"""How long a failing request to Google Cloud Storage is tried again."""
SCHEMES = ("s3", "gs")
"""How the addresses of objects begin."""
LISTING_FOLDERS = ("s3",)
"""Stores of which a listing of one folder names the folders in it; of others all objects below have to be listed."""

_ENVIRONMENT = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
_MOST_SAID = 300


class _Remedy(NamedTuple):
    """What the message of a library becomes, if one of some words is in it."""

    words: tuple[str, ...]
    found: str
    remedy: str
    is_temporary: bool = False


_ACCESS = (
    "check that the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role; for "
    "gs:// GOOGLE_APPLICATION_CREDENTIALS) are there and may list the bucket and read its objects; write a public "
    "bucket as anonymous@BUCKET"
)
_REMEDIES = (
    _Remedy(
        ("configured region is", "PermanentRedirect", "AuthorizationHeaderMalformed", "HTTP status 301"),
        "the bucket is in another region",
        "set AWS_REGION to the region of the bucket, or leave it unset",
    ),
    _Remedy(("NO_SUCH_BUCKET",), "no such bucket", "check the name of the bucket"),
    _Remedy(
        (
            "INVALID_ACCESS_KEY_ID",
            "SIGNATURE_DOES_NOT_MATCH",
            "INVALID_CLIENT_TOKEN_ID",
            "xpired",
            "EXPIRED",
            "UNRECOGNIZED",
        ),
        "the credentials are wrong or have expired",
        "renew AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or the profile in ~/.aws",
    ),
    _Remedy(
        ("ACCESS_DENIED", "HTTP status 403", "HTTP status 401", "PERMISSION_DENIED", "UNAUTHENTICATED", "redentials"),
        "access is denied",
        _ACCESS,
    ),
    _Remedy(("curlCode: 18",), "the download was cut off", "run the command again", is_temporary=True),
    _Remedy(
        ("NETWORK_CONNECTION", "curlCode", "DEADLINE_EXCEEDED", "UNAVAILABLE", "imeout", "imed out", "CURL error"),
        "the object store does not answer",
        "check the network and AWS_ENDPOINT_URL_S3 (for gs:// STORAGE_EMULATOR_HOST), and run the command again",
        is_temporary=True,
    ),
    _Remedy(
        ("SLOW_DOWN", "HTTP status 5", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "THROTTLING", "RESOURCE_EXHAUSTED"),
        "the object store is overloaded or fails",
        "run the command again later",
        is_temporary=True,
    ),
)
_OTHER = _Remedy((), "cannot be read", "check the address and the object store")
_OF_STORES = ("AWS Error", "google::cloud::Status")


def file_system(scheme: str, bucket: str, *, is_anonymous: bool) -> FileSystem:
    """Return the connection to a bucket, the same as long as the environment is.

    Raises:
        DataError: Something in the environment is wrong.
        UnavailableError: The object store does not answer.
    """
    environment = tuple((name, value) for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT))
    return _file_system(scheme, bucket, is_anonymous, environment)


@lru_cache(maxsize=32)
def _file_system(scheme: str, bucket: str, is_anonymous: bool, environment: tuple[tuple[str, str], ...]) -> FileSystem:
    from pyarrow import fs

    names = dict(environment)
    if scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=is_anonymous,
            retry_time_limit=timedelta(seconds=RETRY_SECONDS),
            **_endpoint(names, "STORAGE_EMULATOR_HOST"),
        )
    endpoint = _endpoint(names, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = names.get("AWS_REGION") or names.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        anonymous=is_anonymous,
        region=region,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        tls_ca_file_path=names.get("AWS_CA_BUNDLE"),
        **endpoint,
    )


def _endpoint(environment: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the address of a store other than the vendor's, as the first of some variables has it."""
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return {}
    found = urlsplit(environment[name])
    if found.scheme not in ("http", "https") or not found.netloc or "@" in found.netloc or found.path not in ("", "/"):
        raise DataError(
            f"{name}: expected http://HOST:PORT or https://HOST without a user and a path, found "
            f"{redacted(environment[name])}; set it right, or unset it"
        )
    return {"scheme": found.scheme, "endpoint_override": found.netloc}


def is_of_store(error: Exception) -> bool:
    """Return whether an object store is the cause of an error, and not the content of an object."""
    return any(words in str(error) for words in _OF_STORES)


@contextmanager
def store_errors(address: str) -> Iterator[None]:
    """Give errors of an object store in the block their remedy; an error about content passes through.

    Args:
        address: What is read, for the message.

    Raises:
        DataError: It is not there, may not be read, or something is set up in a wrong way.
        UnavailableError: The store cannot be reached or is overloaded; the same command may work later.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{address}: no such object; check the address") from None
    except OSError as error:
        if not is_of_store(error):
            raise
        said = redacted(" ".join(str(error).split()), *passwords_of(os.environ))[:_MOST_SAID].rstrip(".")
        match = next((one for one in _REMEDIES if any(word in said for word in one.words)), _OTHER)
        kind = UnavailableError if match.is_temporary else DataError
        raise kind(f"{address}: {match.found} ({said}); {match.remedy}") from None
