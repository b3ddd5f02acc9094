"""`serving.toml`: the operator's settings. Every key can be set by an environment variable, and most by a flag, too.

In order of increasing precedence: the default, `serving.toml`, `TOWERS_<KEY>` in the environment, the flag.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError

from features.encoders.policy import RemotePolicy, origins_of
from features.errors import DataError
from features.messages import shown
from features.settings import RecommendSeen, StrictTable, parse_settings, read_toml
from serving import deadline
from serving.observability.logs import Format
from serving.observability.request_log import KEY_CHARACTERS
from serving.search.databases.settings import DatabaseSettings, Fallback
from serving.search.micro_batching import MicroBatching
from towers.bundle.trust import Trust

ENVIRONMENT_PREFIX = "TOWERS_"
SETTINGS_FILE = Path("serving.toml")
PRODUCTION = Path("runs/production")
"""The link that a service in production is started with. Only `towers deploy` and `towers rollback` change it."""
USERS_PER_PART = 8192
"""Default number of users of a part of `towers recommend`: what is lost when it is killed, for each process."""


_WEB_ORIGIN = r"^https?://[^/\s;,]+$"
_ORIGIN = rf"^\*$|{_WEB_ORIGIN}"


def _split(value: Any) -> Any:
    """Return the comma-separated text of an environment variable as a list; other values unchanged."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _host(entry: str) -> str:
    origins_of(entry)
    return entry


class ServingConfig(StrictTable):
    """The settings of a service: its address, limits, security, logging and search."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: reachable from other machines."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on. 0: any free port."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Number of worker processes. Each uses about one core and has the model, catalogue and histories in memory of its
    own; vectors and index are in memory once for all."""
    threads: int = Field(default=4, ge=1, le=256)
    """Number of requests that one worker answers at a time."""
    queue_size: int = Field(default=64, ge=0, le=4096)
    """Requests that may queue in one worker while `threads` are being answered. Further ones are rejected at once with
    503 and `Retry-After`. A longer queue absorbs bursts, and raises latency."""
    timeout_seconds: float = Field(default=2.0, gt=0, le=3600)
    """Deadline of a request in seconds, from its arrival, queueing included. A request that takes longer gets 503 and
    `Retry-After`. Raise it for a catalogue of millions of items."""
    micro_batching: MicroBatching = "off"
    """Micro-batching: combine concurrent searches, and user encodings, of one worker into a single call. Scores may
    then differ in the last digit. auto: only where measurements at the start show a gain."""
    server: Literal["granian", "gunicorn"] = "granian"
    """Which production server runs the workers."""
    default_k: int = Field(default=10, ge=1)
    """Number of items in a response when the request gives no `k`."""
    max_k: int = Field(default=1000, ge=1)
    """Maximum `k` of a request."""
    max_offset: int = Field(default=10_000, ge=0)
    """Maximum `offset` of a request."""
    max_users: int = Field(default=100, ge=1)
    """Maximum number of users in one request."""
    max_history: int = Field(default=10_000, ge=0)
    """Maximum number of items in a posted history, and in a list of items to exclude."""
    max_slate_slots: int = Field(default=4000, ge=1)
    """Maximum number of slate slots that one request may have filled by rules: users times `offset` + `k`. The default
    is such that the worst request takes less than `timeout_seconds` on 100,000 items."""
    max_limited_users: int = Field(default=10, ge=1)
    """Maximum number of users in a request with `at_most` or `distinct`, which can take several searches per user."""
    max_explained_users: int = Field(default=10, ge=1)
    """Maximum number of users in a request with `reasons`."""
    max_body_bytes: int = Field(default=1_048_576, ge=1)
    """Maximum size of a request body, in bytes."""
    body_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Maximum time for a request body to arrive, in seconds. Raise it, together with `max_body_bytes`, for clients with
    slow uplinks. Each body being received occupies a connection."""
    connections: int = Field(default=512, ge=16, le=65_536)
    """Maximum number of open connections of one worker; further ones wait. Each may occupy a thread."""
    api_keys_file: str | None = None
    """File of the accepted API keys, written by `towers key`. None: no key is required, not even to write."""
    rate: float | None = Field(default=None, gt=0, le=1e6)
    """Rate limit: requests per second of one client (its API key, or its address without keys), counted by all workers
    together. None: no limit."""
    burst: int = Field(default=20, ge=1)
    """With `rate`: number of requests that a client may send at once after a pause."""
    trusted_proxies: int = Field(default=0, ge=0, le=16)
    """Number of proxies in front of the service that append the client's address to `X-Forwarded-For` and, where they
    serve it below a path of their own, set `X-Forwarded-Prefix`. 0: the headers are ignored."""
    cors_origins: Annotated[list[Annotated[str, Field(pattern=_ORIGIN)]], BeforeValidator(_split)] = Field(
        default_factory=list
    )
    """Origins whose pages may read responses in a browser (CORS), such as `https://shop.example.com`; `*`: all. An API
    key in a page is public, so allow origins only where recommendations may be read by everyone. Comma-separated in the
    environment."""
    picture_origins: Annotated[list[Annotated[str, Field(pattern=_WEB_ORIGIN)]], BeforeValidator(_split)] = Field(
        default_factory=list
    )
    """Origins from which the web page loads the pictures of items, such as `https://cdn.example.com`. None: only those
    that the catalogue holds itself (`data:image/...`) or that lie below the service's own address. Comma-separated in
    the environment."""
    audit: str | None = None
    """Folder with the `audit.html` that `towers audit` wrote, to which the web page links. None: there is no link."""
    log_format: Format = "auto"
    """Format of the log, one event per line. auto: `text` in a terminal, `json` otherwise."""
    log_requests: Literal["all", "problems", "none"] = "problems"
    """Which requests are logged. problems: those with status 500 and above, or slower than `slow_seconds`."""
    slow_seconds: float = Field(default=1.0, gt=0)
    """Duration in seconds from which a request counts as slow."""
    request_log: str | None = None
    """File to which a sample of the answered requests is logged, a line of JSON each, for `towers drift`: kind of user,
    items with their positions, scores, duration. None: no request is logged there."""
    request_log_share: float = Field(default=0.01, gt=0, le=1)
    """Share of the requests that are logged to `request_log`, 0 to 1."""
    request_log_key: SecretStr | None = Field(default=None, min_length=KEY_CHARACTERS)
    """Secret of at least 16 characters. With it `request_log` has a keyed hash of the ids of users, with which
    `towers drift` finds what they chose. None: the ids are left out, and there is no click-through."""
    request_log_max_bytes: int = Field(default=20 * 2**20, ge=4096)
    """Size in bytes from which a new file of `request_log` is begun; the one before becomes `FILE.1`."""
    request_log_files: int = Field(default=5, ge=2, le=1000)
    """Number of files of `request_log` that are kept; the oldest is deleted."""
    recommend_seen: RecommendSeen | None = None
    """Which items of a user's history may be recommended again. None: as the model was trained."""
    filter_columns: Annotated[list[str] | None, BeforeValidator(_split)] = None
    """Columns of the catalogue that requests may filter by; comma-separated in the environment. None: all columns. A
    client that may filter by a column can find out its values."""
    rerank: bool = True
    """Re-rank the best candidates, if the bundle has a ranker (`towers train-ranker`)."""
    rerank_candidates: int | None = Field(default=None, ge=10, le=1000)
    """Number of candidates that are re-ranked. None: as many as the re-ranker was trained for."""
    rerank_budget_ms: float = Field(default=20.0, gt=0, le=60_000)
    """Time budget of re-ranking for all users of a request together, in milliseconds; users not re-ranked in time
    get the un-re-ranked results."""
    live: SecretStr | None = None
    """Store of live writes (items and events): a file (SQLite) for the workers of one machine, or
    postgresql://USER@HOST/DATABASE for several machines. None: the service accepts no writes. A password is never
    shown or logged; on the command line other users of the machine could see it, so set it here, in the environment, or
    in `PGPASSWORD`."""
    index: SecretStr | None = None
    """Vector database to search in instead of the bundle's own index: postgresql://USER@HOST/DATABASE?table=NAME
    (pgvector), qdrant://HOST:PORT?collection=NAME (with &tls=true encrypted), or qdrant:///FOLDER?collection=NAME
    (Qdrant's engine in the process of a single worker). `towers index` and `towers deploy` write there, too. None: the
    bundle's own index. A password is never shown or logged."""
    index_key: SecretStr | None = None
    """API key of a Qdrant server. None: none is sent."""
    index_timeout_seconds: float = Field(default=0.5, gt=0, le=60)
    """Maximum time of a search in the vector database, in seconds; it should leave `timeout_seconds` enough for another
    answer."""
    index_retries: int = Field(default=1, ge=0, le=10)
    """How many times a search in the vector database that failed within that time is repeated."""
    index_fallback: Fallback = "local"
    """What answers while the vector database is away or wrong. local: the bundle's own index. none: requests that need
    a search get 503."""
    index_keep: int = Field(default=2, ge=1, le=1000)
    """How many collections of one model `towers index` keeps in the vector database, the newest first. Services use the
    one before until they have loaded the new index."""
    watch_seconds: float = Field(default=2.0, ge=0, le=86_400)
    """Interval of checks for a new bundle or index, in seconds, which is then loaded without a restart. 0: never."""
    device: Literal["auto", "cpu", "cuda", "cuda-shards"] = "cpu"
    """Device for searches in the index. cuda: a copy of the index on each GPU, which share the requests; cuda-shards: a
    part of it on each, for an index larger than the memory of one. auto: cuda if there is a GPU and FAISS is built for
    it."""
    trusted_keys: str | None = None
    """File of public keys (`towers keygen`), one or several. A bundle, its index and its ranker are used only if each
    is signed by one of them. None: no signature is required; checksums only detect damage."""
    encoder_hosts: Annotated[list[Annotated[str, AfterValidator(_host)]], BeforeValidator(_split)] = Field(
        default_factory=list
    )
    """Embeddings services that a bundle may send texts to: `HOST` or `HOST:PORT` for https (on this machine also http),
    `http://HOST:PORT` for unencrypted connections. `huggingface.co` allows the download of models that a bundle refers
    to by name. Comma-separated in the environment."""
    encoder_key_variables: Annotated[list[str], BeforeValidator(_split)] = Field(default_factory=list)
    """Environment variables whose values a bundle may send to such a service as its API key; comma-separated in the
    environment."""

    @property
    def database(self) -> DatabaseSettings | None:
        """The vector database to search in; None: the bundle's own index."""
        if self.index is None:
            return None
        return DatabaseSettings(
            address=self.index.get_secret_value(),
            key=None if self.index_key is None else self.index_key.get_secret_value(),
            timeout_seconds=self.index_timeout_seconds,
            retries=self.index_retries,
            fallback=self.index_fallback,
            keep=self.index_keep,
        )

    @property
    def trust(self) -> Trust:
        """The permissions of a bundle: the services that it may use, and the keys that must have signed it."""
        remote = RemotePolicy(tuple(self.encoder_hosts), tuple(self.encoder_key_variables), deadline.left)
        return Trust(remote, None if self.trusted_keys is None else Path(self.trusted_keys))


def settings_here(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> ServingConfig:
    """Return the settings of a command, which reads the `serving.toml` of the working folder if there is one.

    Args:
        config: Another file to read instead.
        flags: As for `read_settings`.

    Raises:
        DataError: As `read_settings` does.
    """
    return read_settings(config or (SETTINGS_FILE if SETTINGS_FILE.exists() else None), flags=flags)


def read_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> ServingConfig:
    """Return the settings of a service.

    Args:
        path: A `serving.toml`. None: no file is read.
        environment: The environment with `TOWERS_<KEY>`. None: that of this process.
        flags: The flags of the command line by setting; those that are None were not given.

    Raises:
        DataError: A setting is unknown or has an invalid value; names it and its source.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= parse_settings(ServingConfig, read_toml(path), str(path)).model_dump(exclude_unset=True)
    values |= _from_environment(os.environ if environment is None else environment)
    values |= {key: value for key, value in (flags or {}).items() if value is not None}
    settings = parse_settings(ServingConfig, values, "settings of the service")
    if settings.default_k > settings.max_k:
        raise DataError(
            f"settings of the service: default_k = {settings.default_k} is greater than max_k = {settings.max_k};"
            " lower default_k or raise max_k"
        )
    if (
        settings.workers > 1
        and settings.index is not None
        and settings.index.get_secret_value().startswith("qdrant:///")
    ):
        raise DataError(
            f"settings of the service: workers = {settings.workers}, but one process at a time can open the "
            "collections of index = qdrant:///...; set workers = 1, or run a Qdrant server and name it: qdrant://HOST:PORT"
        )
    return settings


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the settings of a service, for child processes, which read them from a file."""
    names = _variables()
    return {name: value for name, value in environment.items() if name not in names}


def _variables() -> dict[str, str]:
    """Return the key of each setting by its environment variable."""
    return {f"{ENVIRONMENT_PREFIX}{key.upper()}": key for key in ServingConfig.model_fields}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = _variables()
    given = {key: environment[name] for name, key in names.items() if environment.get(name, "") != ""}
    try:
        return ServingConfig.model_validate_strings(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        names_of = {key: name for name, key in names.items()}
        mistakes = "; ".join(
            f"{names_of[str(mistake['loc'][0])]}: {mistake['msg'].lower()}, found {shown(mistake['input'])}"
            for mistake in error.errors()
        )
        raise DataError(f"environment: {mistakes}") from None
