"""`depthcast auth`: keys for people and programs, and throwing them out."""

import secrets
from typing import Annotated

import orjson
import typer

from services.config import load_settings
from services.errors import UserError

auth_app = typer.Typer(help="Who gets in: make keys, revoke subjects and tokens.", no_args_is_help=True)

Seconds = Annotated[int, typer.Option(min=0, help="For how long; 0 permits again.")]


@auth_app.command("new-key")
def new_key(
    subject: Annotated[str, typer.Argument(help="Who gets it, as in desk-1.")],
    instruments: Annotated[list[str] | None, typer.Option(help="Pattern of instruments; may come again.")] = None,
    depth_max: Annotated[int, typer.Option(min=0, help="Levels of each side; 0 is the full book.")] = 0,
) -> None:
    """Print a new API key, which is kept nowhere, and its entry for DEPTHCAST_AUTH_API_KEYS_FILE."""
    from services.auth import api_keys

    key, sha256 = api_keys.new_key()
    grant: dict[str, object] = {"instruments": instruments or ["*"]}
    if depth_max:
        grant["depth_max"] = depth_max
    entry = orjson.dumps([{"subject": subject, "sha256": sha256, "grant": grant}], option=orjson.OPT_INDENT_2)
    api_keys.parse_keys(entry)
    typer.echo(f"key, shown once: {key}", err=True)
    typer.echo(entry.decode())


@auth_app.command("new-secret")
def new_secret(kid: Annotated[str, typer.Argument(help="Name of the secret: letters and digits.")] = "k1") -> None:
    """Print a value for DEPTHCAST_AUTH_SIGNING_KEYS."""
    typer.echo(f"{kid}:{secrets.token_urlsafe(32)}")


@auth_app.command("revoke")
def revoke(
    sub: Annotated[str, typer.Option(help="Subject: all of its tokens, and no new ones.")] = "",
    jti: Annotated[str, typer.Option(help="Id of one token.")] = "",
    seconds: Seconds = 86_400,
    admin: Annotated[str, typer.Option(help="HOST:PORT of a streamer's admin port.")] = "",
) -> None:
    """Throw a subject or a token out, on every streamer that shares the Redis."""
    import httpx

    settings = load_settings()
    if not (sub or jti):
        raise UserError("say whom: --sub or --jti")
    address = admin or f"{settings.admin_host}:{settings.admin_port}"
    body = {**({"sub": sub} if sub else {}), **({"jti": jti} if jti else {}), "seconds": seconds}
    try:
        answer = httpx.post(f"http://{address}/revocations", json=body, timeout=5.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"no streamer answers at {address}: {error}; say where with --admin") from None
    if answer.status_code != httpx.codes.OK:
        raise UserError(f"the streamer at {address} answers: {answer.text.strip()}")
    typer.echo("done")
