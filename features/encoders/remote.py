"""Embeddings services behind an address: OpenAI's protocol, which most servers of models speak, and Cohere's.

What fails for a while is asked again, at growing intervals, as long as there is time; what the service says is bounded
and checked before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from jaxtyping import Float32

from features.config import EncoderSettings
from features.encoders.model import Encoded, Role
from features.errors import DataError, UnavailableError, needing
from features.redaction import redacted

if TYPE_CHECKING:
    import requests

TEXTS_A_REQUEST = 64
ATTEMPTS = 6
LONGEST_WAIT_SECONDS = 30.0
TIMEOUT_SECONDS = (10.0, 120.0)
"""Timeouts in seconds: to connect, and for the whole response."""
MAX_ANSWER_BYTES = 64 * 2**20
"""Maximum bytes of a response: three times that of vectors of 16,384 dimensions for each text of a request."""
INPUT_TYPES = {"query": "search_query", "document": "search_document"}
"""Cohere's names of the roles."""


class _PassingError(Exception):
    """A failure that may be over soon.

    Args:
        said: What went wrong.
        wait_seconds: How long the service asks to wait. None: it does not say.
    """

    def __init__(self, said: str, wait_seconds: float | None = None) -> None:
        super().__init__(said)
        self.wait_seconds = wait_seconds


class RemoteModel:
    """A model behind an address.

    Args:
        settings: The address, the protocol, and the model's name there.
        width: How many numbers its vectors have. None: it is asked.
        time_left: Returns how many seconds it may still take, all attempts together; None for as long as it needs.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        width: int | None = None,
        time_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._width = width
        self._time_left = time_left

    @property
    def fingerprint(self) -> str:
        """The address, the name, and what else is sent; what the service does behind them cannot be seen from here."""
        settings = self.settings
        deciding = [settings.url, settings.protocol, settings.model, settings.dimensions]
        prompts = [settings.query_prompt, settings.document_prompt]
        return hashlib.sha256(json.dumps([*deciding, *prompts]).encode()).hexdigest()[:24]

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        if self._width is None:
            self._width = len(self._ask(["width"], "document")[0])
        return self._width

    def encode(self, texts: Sequence[str], role: Role) -> Iterator[Encoded]:
        """Yield the vectors of a request's texts at a time.

        Raises:
            UnavailableError: The service gives no usable answer in time.
            DataError: The service rejects the request, or uses another model than before.
        """
        prompt = (self.settings.query_prompt if role == "query" else self.settings.document_prompt) or ""
        for begin in range(0, len(texts), TEXTS_A_REQUEST):
            vectors = self._ask([prompt + text for text in texts[begin : begin + TEXTS_A_REQUEST]], role)
            yield np.arange(begin, begin + len(vectors)), vectors

    def _ask(self, texts: list[str], role: Role) -> Float32[np.ndarray, "texts width"]:
        with needing("embeddings services"):
            import stamina

        vectors, asked = np.zeros((0, 0), dtype=np.float32), 0
        try:
            for attempt in stamina.retry_context(
                on=_wait, attempts=ATTEMPTS, timeout=self._time_left(), wait_max=LONGEST_WAIT_SECONDS
            ):
                with attempt:
                    asked = attempt.num
                    vectors = self._ask_once(texts, role)
        except _PassingError as error:
            times = f", {asked} times" if asked > 1 else ""
            raise UnavailableError(f"{self.settings.url}: {error}{times}; try again later") from None
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
        return unit.astype(np.float32, copy=False)

    def _ask_once(self, texts: list[str], role: Role) -> Float32[np.ndarray, "texts width"]:
        import requests

        left = self._time_left()
        connect, read = (seconds if left is None else max(0.001, min(seconds, left)) for seconds in TIMEOUT_SECONDS)
        ends = time.monotonic() + connect + read
        try:
            # A redirect would choose another host for the texts.
            answer = self._session.post(
                self._address,
                json=self._body(texts, role),
                timeout=(connect, read),
                allow_redirects=False,
                stream=True,
            )
            content = self._content(answer, ends if left is None else time.monotonic() + left)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _PassingError(f"no answer ({type(error).__name__})") from None
        except requests.RequestException as error:
            raise DataError(f"{self._address}: cannot be asked ({type(error).__name__}); see its url") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _PassingError(
                f"answers with status {answer.status_code}", _seconds(answer.headers.get("Retry-After"))
            )
        if answer.status_code != 200:
            said = redacted(" ".join(content[:4000].decode(errors="replace").split())[:1000], self._key)[:160]
            raise DataError(f"{self._address}: answers with status {answer.status_code} ({said}){self._hint(answer)}")
        try:
            vectors = np.array(self._vectors(orjson.loads(content)), dtype=np.float32)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = redacted(repr(error), self._key)[:160]
            raise _PassingError(f"answers with what is not {self.settings.protocol}'s protocol ({said})") from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise _PassingError(f"answers with vectors of shape {vectors.shape} to {len(texts)} texts")
        if self._width is not None and vectors.shape[1] != self._width:
            raise DataError(
                f"{self._address}: expected vectors of {self._width} numbers, found {vectors.shape[1]}; it has "
                "another model now: train again"
            )
        return vectors

    def _content(self, answer: requests.Response, ends: float) -> bytes:
        """Return the body of a response, until a deadline of the monotonic clock."""
        from urllib3.exceptions import HTTPError

        content = bytearray()
        with answer:
            try:
                while piece := answer.raw.read1(2**16, decode_content=True):
                    content += piece
                    if len(content) > MAX_ANSWER_BYTES:
                        raise DataError(f"{self._address}: answers with more than {MAX_ANSWER_BYTES:,} bytes")
                    if time.monotonic() > ends:
                        raise _PassingError("no whole answer in time")
            except HTTPError as error:
                raise _PassingError(f"no whole answer ({type(error).__name__})") from None
        return bytes(content)

    @property
    def _address(self) -> str:
        path = "embeddings" if self.settings.protocol == "openai" else "embed"
        address = str(self.settings.url).rstrip("/")
        return address if address.endswith(f"/{path}") else f"{address}/{path}"

    def _body(self, texts: list[str], role: Role) -> dict[str, Any]:
        settings = self.settings
        if settings.protocol == "cohere":
            body = {
                "model": settings.model,
                "texts": texts,
                "input_type": INPUT_TYPES[role],
                "embedding_types": ["float"],
            }
            return body | ({"output_dimension": settings.dimensions} if settings.dimensions else {})
        body = {"model": settings.model, "input": texts, "encoding_format": "float"}
        return body | ({"dimensions": settings.dimensions} if settings.dimensions else {})

    def _vectors(self, content: Any) -> list[list[float]]:
        if self.settings.protocol == "cohere":
            embeddings: list[list[float]] = content["embeddings"]["float"]
            return embeddings
        return [one["embedding"] for one in sorted(content["data"], key=lambda one: int(one["index"]))]

    def _hint(self, answer: requests.Response) -> str:
        if answer.is_redirect:
            return "; redirects are not followed: make url the address that it redirects to"
        if answer.status_code not in (401, 403):
            return ""
        name = self.settings.key_variable
        return f"; put the service's key into the environment variable {name}" if name else "; name a key_variable"

    @cached_property
    def _key(self) -> str | None:
        """API key of the service; None if it needs none."""
        name = self.settings.key_variable
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            raise DataError(f"{self.settings.url}: its key is expected in the environment variable {name}; set it")
        if not (key.isascii() and key.isprintable()):
            raise DataError(
                f"{self.settings.url}: the environment variable {name} holds characters that no key has, such as a "
                "line break; set it to the key alone"
            )
        return key

    @cached_property
    def _session(self) -> requests.Session:
        import requests

        session, key = requests.Session(), self._key

        def authorised(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key is not None:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        # Given as `auth`, nothing of ~/.netrc is sent in its place.
        session.auth = authorised
        return session


def _wait(error: Exception) -> bool | float:
    """Tell stamina whether to retry, and after which delay if the service gave one."""
    if not isinstance(error, _PassingError):
        return False
    return True if error.wait_seconds is None else min(error.wait_seconds, LONGEST_WAIT_SECONDS)


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
