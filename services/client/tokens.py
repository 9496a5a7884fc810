"""Where a client's tokens come from: a text that somebody gave it, or a function that fetches one when it is needed."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import httpx

from services.client.events import ClientError, TerminalError

TokenSource = Callable[[], Awaitable[str]]
API_KEY_PREFIX = "dck_"
TIMEOUT_S = 5.0


class NoTokenError(ClientError):
    """No token now; it may be had later."""


def from_text(text: str, url: str) -> str | TokenSource:
    """What `connect` takes: an API key becomes a source, a token stays one.

    Args:
        url: Of the stream endpoint that the API key is for.
    """
    return from_api_key(text, url) if text.startswith(API_KEY_PREFIX) else text


def from_api_key(api_key: str, url: str) -> TokenSource:
    """A source that shows an API key, or an identity provider's token, at ``POST /v1/token`` beside a stream endpoint.

    It raises `TerminalError` when the key is refused, `NoTokenError` when nobody answers.
    """
    parts = urlsplit(url)
    address = urlunsplit(("https" if parts.scheme == "wss" else "http", parts.netloc, "/v1/token", "", ""))

    async def fetch() -> str:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=parts.scheme == "wss") as http:
                answer = await http.post(address, headers={"Authorization": f"Bearer {api_key}"})
            if answer.status_code in (400, 401, 403, 404):
                raise TerminalError(f"{address} gives no token: {_detail(answer)}")
            answer.raise_for_status()
            return str(answer.json()["access_token"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise NoTokenError(f"{address} gives no token: {type(error).__name__}") from None

    return fetch


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])[:200]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
