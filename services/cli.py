"""The command ``depthcast``: options in, one function call out. Commands import what they run, so ``--help`` is quick.

Exit codes: 0 done, 1 the answer is no or we have a bug, 2 the user can mend it (one line says how), 130 interrupted.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from loadtest.cli import loadtest_app
from services.auth.cli import auth_app
from services.config import Settings, effective, load_settings, unknown_variables
from services.errors import UserError

T = TypeVar("T")

app = typer.Typer(
    name="depthcast",
    help="Verified order books from Kafka to WebSocket clients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
topics_app = typer.Typer(help="Kafka topics: create and describe.", no_args_is_help=True)
feed_app = typer.Typer(help="Put ticks into Kafka: from a capture, or simulated.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(feed_app, name="feed")
app.add_typer(auth_app, name="auth")
app.add_typer(loadtest_app, name="loadtest")

Feed = Annotated[str, typer.Option("--feed", help="Venue and market of the capture, as in binance.spot or kraken.")]
Seconds = Annotated[float, typer.Option(min=0, help="End after this many seconds; 0 runs until interrupted.")]
Symbols = Annotated[int, typer.Option(min=1, max=10_000, help="Instruments to simulate.")]
Rate = Annotated[float, typer.Option(min=0.1, max=1e6, help="Ticks per second, of all instruments together.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same market.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kafka = Annotated[str, typer.Option(help="HOST:PORT of a real Kafka; without it one runs inside this process.")]
Capture = Annotated[Path, typer.Argument(help="A capture: .gz, .jsonl.zst or raw lines.")]


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    global _debug  # noqa: PLW0603 - main() needs it after the command has raised
    _debug = debug
    if show_version:
        typer.echo(version("depthcast"))
        raise typer.Exit


_debug = False


@app.command()
def config(as_json: AsJson = False) -> None:
    """Print the effective settings, secrets masked."""
    from services.build import describe

    values = effective(load_settings())
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo("\n".join([f"# {describe()}", *(f"{name}={value}" for name, value in values.items())]))
    for name in unknown_variables():
        typer.echo(f"depthcast: {name} is set, but it is no setting; see the names above", err=True)


@topics_app.command("create")
def topics_create() -> None:
    """Create the topics that are missing, with the right partitions, retention and cleanup."""
    from services import topics

    run(topics.run_create(_start(libraries="CRITICAL")))


@topics_app.command("describe")
def topics_describe() -> None:
    """Say which topics exist and whether they are as they must be."""
    from services import topics

    run(topics.run_describe(_start(libraries="CRITICAL")))


@app.command()
def ingest() -> None:
    """Run an ingest worker: ticks in, verified books out."""
    from services.ingest import run_ingest

    run(run_ingest(_start()))


@app.command()
def streamer(
    workers: Annotated[int, typer.Option(min=0, help="Processes on the one port; 0: DEPTHCAST_WORKERS.")] = 0,
    ssl_certfile: Annotated[Path | None, typer.Option(help="PEM file: serve wss and https.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
) -> None:
    """Run a streamer: books in, WebSocket and HTTP clients out."""
    given: dict[str, Any] = {"workers": workers, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    settings = _start(**{name: value for name, value in given.items() if value})
    if settings.workers == 1:
        from services.streamer.app import run_streamer

        run(run_streamer(settings))
    else:
        from services.streamer.supervisor import run_supervisor

        raise typer.Exit(0 if run(run_supervisor(settings)) else 1)


@app.command(hidden=True)
def worker() -> None:
    """Run one of the processes of a streamer: for its supervisor."""
    from services.streamer.app import run_streamer

    run(run_streamer(_start()))


@feed_app.command("replay")
def feed_replay(
    file: Capture,
    feed: Feed,
    speed: Annotated[str, typer.Option(help="max, or a factor: 1 is the capture's own speed.")] = "1",
) -> None:
    """Replay a capture into the ticks topic."""
    factor = speed_factor(speed)
    from services.feed.replay import run_replay

    run(run_replay(_start(), file, feed, factor))


@feed_app.command("simulate")
def feed_simulate(
    symbols: Symbols = 20,
    rate: Rate = 1000,
    seed: Seed = 1,
    seconds: Seconds = 0,
    ahead: Annotated[bool, typer.Option("--ahead", help="Make all ticks before the first; needs --seconds.")] = False,
) -> None:
    """Simulate a market into the ticks topic."""
    from services.feed.simulate import run_simulate

    run(run_simulate(_start(), symbols, rate, seed, seconds, ahead=ahead))


@app.command()
def dev(
    kafka: Kafka = "",
    replay: Annotated[Path | None, typer.Option(help="A capture to replay instead of the simulator.")] = None,
    feed: Annotated[str, typer.Option(help="Venue and market of the capture.")] = "",
    speed: Annotated[str, typer.Option(help="Of the replay: max, or a factor.")] = "1",
    symbols: Symbols = 20,
    rate: Rate = 1000,
    seed: Seed = 1,
    seconds: Seconds = 0,
) -> None:
    """Run everything in one process: broker, feed, ingest, streamer. With --seconds, end with one line of JSON."""
    if replay is not None and not feed:
        raise UserError("--replay needs --feed, the capture's venue and market, as in --feed binance.spot")
    factor = speed_factor(speed)
    from services.dev import run_dev

    settings = _start(**({"kafka_bootstrap": kafka} if kafka else {}))
    run(run_dev(settings, kafka, replay, feed, factor, symbols=symbols, rate=rate, seed=seed, seconds=seconds))


@app.command()
def verify(file: Capture, feed: Feed, as_json: AsJson = False, kafka: Kafka = "") -> None:
    """Prove that the book in a client is the venue's book, on a capture. Exit 0 only if all holds."""
    from services.verify import run_verify

    _start(libraries="CRITICAL")
    raise typer.Exit(0 if run(run_verify(file, feed, as_json, kafka)) else 1)


@app.command()
def watch(
    instrument: Annotated[str, typer.Argument(help="As in binance:spot:BTCUSDT.")],
    url: Annotated[str, typer.Option(help="Address of a streamer.")] = "",
    depth: Annotated[int, typer.Option(min=0, help="Levels of each side: 1, 10, 20, 50, 200 or 0 for all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print messages, one JSON object per line.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the book and exit.")] = False,
    token: Annotated[str, typer.Option(help="Token or API key to show; without it DEPTHCAST_TOKEN.")] = "",
) -> None:
    """Watch a live order book in the terminal."""
    from services.watch import run_watch

    settings = _start(libraries="CRITICAL")
    url = url or f"ws://{settings.http_host}:{settings.http_port}/v1/stream"
    run(run_watch(url, instrument, depth, as_json, once, token or settings.token.get_secret_value()))


def speed_factor(text: str) -> float:
    """``max`` is 0: as fast as it goes. Otherwise a factor of the capture's own speed."""
    try:
        factor = 0.0 if text == "max" else float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= 1e6 or (factor == 0 and text != "max"):
        raise UserError(f"--speed {text}: say max, or a factor of at most 1000000 such as 1 or 10")
    return factor


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on uvloop where there is one. Interrupted, it is cancelled and cleans up."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(_cancelled_by_sigterm(main))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except asyncio.CancelledError:
            raise typer.Exit(143) from None


async def _cancelled_by_sigterm(main: Coroutine[Any, Any, T]) -> T:
    """As SIGINT is: `dev` must end its child processes. Ingest and the streamer take the signal over, and drain."""
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await main


def _start(libraries: str = "WARNING", **overrides: object) -> Settings:
    """Settings and logging, before the command's own work."""
    from services.log import configure_logging

    settings = load_settings(**overrides)
    configure_logging(settings, libraries=libraries)
    return settings


def main() -> None:
    """Entry point. No traceback reaches a user who did not ask for one."""
    try:
        code = app(prog_name="depthcast", standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's, of how the command was typed
            _fail_usage(error)
        if _debug:
            raise
        _fail(f"unexpected {type(error).__name__}: {error}; this is a bug, --debug before the command shows where", 1)
    raise SystemExit(code or 0)


def _fail_usage(error: Any) -> NoReturn:  # noqa: ANN401 - its class has another home in each version of typer
    said: str = error.format_message()
    if not said:  # there were no arguments, and the help is on the screen
        raise SystemExit(2)
    command = error.ctx.command_path if error.ctx else "depthcast"
    _fail(f"{said[0].lower()}{said[1:].rstrip('.')}; see {command} --help", 2)


def _fail(message: str, code: int) -> NoReturn:
    print(f"depthcast: {message}", file=sys.stderr)  # noqa: T201 - the last word, logging may not be set up
    raise SystemExit(code)
