"""Text without the secrets in it: every log line, error and record that may quote an address passes through here.

A password in an address (`postgresql://user:PASSWORD@host`), a password or token given as `name=value`, a bearer token
and a key of this service become `***`. What surrounds them stays readable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

HIDDEN = "***"
LONGEST = 4_096
"""Characters around an excerpt to search for secrets, as the longest secrets that are expected."""
_HIDING = rf"\1{HIDDEN}"
_SHORTEST_VALUE = 4
"""Shorter secrets are not searched for as such: that would only blot out ordinary text."""

# What is looked for begins with what few lines hold, and is bounded or taken whole, so the time is linear in the text.
_ADDRESS = re.compile(r"://[^\s'\"]+")
_WEB = ("http", "https")
_NAMES = ("password", "passwd", "passphrase", "secret", "token", "api_key", "api-key", "apikey")
_BEFORE = "|".join(f"(?<={name}{blank}=)" for name in _NAMES for blank in ("", " "))
_AS_SETTING = re.compile(rf"(=(?:(?i:{_BEFORE})) ?)(?:'(?:[^'\\]|\\.){{1,1024}}'|[^\s&'\",;)]{{1,1024}})")
_AS_BEARER = re.compile(r"([Bb]earer )[\w.~+/=-]{8,1024}")
_AS_KEY = re.compile(r"(\btt_)[\w-]{20,1024}")
_PASSWORD = re.compile(r"://[^\s/:@]{0,256}:([^\s@]{1,1024})@")
_SETTING_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|_KEY)$", re.IGNORECASE)


def redacted(text: str, *secrets: str | None) -> str:
    """Return `text` with `***` in the place of each secret.

    Args:
        text: Any text, such as the message of a library's exception.
        secrets: Values that are known to be secret, hidden wherever they stand. None: there is no such value.

    Example:
        >>> redacted("cannot reach postgresql://ann:pa55@db/shop")
        'cannot reach postgresql://ann:***@db/shop'
        >>> redacted("the key sk-1234 is wrong", "sk-1234")
        'the key *** is wrong'
    """
    for secret in secrets:
        if secret is not None and len(secret) >= _SHORTEST_VALUE:
            text = text.replace(secret, HIDDEN)
    if "://" in text and "@" in text:
        text = _ADDRESS.sub(_without_password, text)
    if "=" in text:
        text = _AS_SETTING.sub(_HIDING, text)
    if "earer " in text:
        text = _AS_BEARER.sub(_HIDING, text)
    return _AS_KEY.sub(_HIDING, text) if "tt_" in text else text


def passwords_of(environment: Mapping[str, str]) -> list[str]:
    """Return the passwords and tokens that an environment holds, percent-decoded ones of addresses included."""
    named = [value for name, value in environment.items() if _SETTING_NAME.search(name)]
    in_addresses = [found for value in environment.values() for found in _PASSWORD.findall(value)]
    return [*named, *in_addresses, *map(unquote, in_addresses)]


def has_password(address: str) -> bool:
    """Return whether an address holds a secret, such as the password of a database."""
    return redacted(address) != address


def _without_password(found: re.Match[str]) -> str:
    """Return an address without its password; that runs to the last @, as it may hold one that was not encoded."""
    user, at, host = found[0].removeprefix("://").rpartition("@")
    name, colon, _ = user.partition(":")
    if not at or "/" in name:
        return found[0]
    if colon:
        return f"://{name}:{HIDDEN}@{host}"
    is_token = found.string[max(0, found.start() - 5) : found.start()].endswith(
        _WEB
    )  # a name alone is no secret of a database
    return f"://{HIDDEN}@{host}" if is_token else found[0]
