"""Which embeddings services a bundle may send texts and keys to: those that the operator allows.

A bundle names the address of a service and the environment variable that holds its key. Without a
policy the bundle's maker would choose where this machine's texts and secrets go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from features.errors import DataError
from features.settings import parse_settings

if TYPE_CHECKING:
    from features.config import EncoderSettings

_PORTS = {"http": 80, "https": 443}
_ENTRY = re.compile(r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?")


class Origin(NamedTuple):
    """Target of a request: scheme, host and port, such as `https`, `api.example.com`, 443."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of an address that `EncoderSettings` took."""
        parts = urlsplit(url)
        return cls(parts.scheme.lower(), _host(parts.hostname or ""), parts.port or _PORTS[parts.scheme.lower()])

    def __str__(self) -> str:
        """Return it as an entry of `encoder_hosts`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == _PORTS[self.scheme]
        return f"{'' if self.scheme == 'https' else 'http://'}{host}{'' if is_usual else f':{self.port}'}"


@dataclass(frozen=True)
class RemotePolicy:
    """Network access of a bundle's encoders: allowed hosts and timeouts. By default none.

    Attributes:
        hosts: Entries as in `encoder_hosts`: `HOST` or `HOST:PORT` for https, and on this machine for http as well;
            `http://HOST:PORT` for a plain connection elsewhere.
        key_variables: Environment variables whose values may be sent as a key.
        time_left: Returns how many seconds what asks them may still wait; None for as long as they need.
    """

    hosts: tuple[str, ...] = ()
    key_variables: tuple[str, ...] = ()
    time_left: Callable[[], float | None] = field(default=lambda: None, compare=False)

    def check(self, name: str, settings: EncoderSettings) -> None:
        """Refuse an encoder that would reach something else.

        Args:
            name: The encoder, as the bundle calls it.
            settings: What the bundle says of it.

        Raises:
            DataError: Its service or its key variable is not allowed; names the setting that allows it.
        """
        if settings.url is None:
            return
        origin = Origin.of(settings.url)
        if not self.allows(origin):
            raise DataError(
                f"encoder {name!r} sends texts to {origin.scheme}://{origin.host}:{origin.port}, which the operator "
                f'has not allowed; if you trust it, put "{origin}" into encoder_hosts in serving.toml, or into '
                "TOWERS_ENCODER_HOSTS"
            )
        if settings.key_variable is not None and settings.key_variable not in self.key_variables:
            raise DataError(
                f"encoder {name!r} sends the environment variable {settings.key_variable} to {origin.host}, which the "
                f'operator has not allowed; if that is its key, put "{settings.key_variable}" into '
                "encoder_key_variables in serving.toml, or into TOWERS_ENCODER_KEY_VARIABLES"
            )

    def check_all(self, folder: Path, names: Iterable[str]) -> None:
        """Refuse what one of the encoders of these names, saved in a folder, would reach; none is loaded for it.

        Raises:
            DataError: As `check` does, or a description is damaged.
        """
        for name in names:
            self.check(name, _settings_of(folder / name / "encoder.json"))

    def allows(self, origin: Origin) -> bool:
        """Return whether an origin may be reached."""
        return any(origin in origins_of(entry) for entry in self.hosts)


NOTHING = RemotePolicy()
"""No network access."""


def origins_of(entry: str) -> set[Origin]:
    """Return what an entry of `encoder_hosts` allows.

    Raises:
        ValueError: It is not such an entry.

    Example:
        >>> origins_of("api.example.com")
        {Origin(scheme='https', host='api.example.com', port=443)}
    """
    found = _ENTRY.fullmatch(entry)
    if found is None or int(found["port"] or 0) > 65_535:
        raise ValueError(f"expected HOST, HOST:PORT or http://HOST:PORT without a path, found {entry!r}")
    host = _host(found["host"].strip("[]"))
    schemes = [found["scheme"].lower()] if found["scheme"] else ["https", "http"] if is_loopback(host) else ["https"]
    return {Origin(scheme, host, int(found["port"] or _PORTS[scheme])) for scheme in schemes}


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, which no network can listen to."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(name: str) -> str:
    """Return a host in normal form: names in lower case, addresses in their shortest form."""
    try:
        return ip_address(name).compressed
    except ValueError:
        return name.lower().removesuffix(".")


def _settings_of(path: Path) -> EncoderSettings:
    from features.config import EncoderSettings  # imports pandas, for which a service without encoders does not wait

    try:
        described = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r})") from None
    return parse_settings(EncoderSettings, described, str(path))
