"""The command ``depthcast loadtest``: options in, one function call out."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from loadtest.errors import LoadTestError

loadtest_app = typer.Typer(help="Measure a streamer from outside, honestly.", no_args_is_help=True)

Clients = Annotated[int, typer.Option(min=1, max=60_000, help="Connections.")]
Instruments = Annotated[int, typer.Option(min=1, max=4_000, help="Synthetic instruments.")]
PerClient = Annotated[int, typer.Option(min=1, max=1_000, help="Instruments that each client subscribes to.")]
Rate = Annotated[float, typer.Option(min=1, max=1e6, help="Updates published per second, of all instruments.")]
Seconds = Annotated[float, typer.Option(min=0.5, max=86_400, help="Length of the measured run.")]
PerS = Annotated[float, typer.Option(min=0.01, max=10_000, help="Connections replaced per second.")]
Url = Annotated[str, typer.Option(help="A server that is already running, as in ws://127.0.0.1:8080/v1/stream.")]
Kafka = Annotated[str, typer.Option(help="HOST:PORT of a real Kafka; without it one is started for the test.")]
Prefix = Annotated[str, typer.Option("--topic-prefix", help="With --url: of the topics that the server reads.")]
Feed = Annotated[int, typer.Option("--feed-port", help="With --url: port of a peer that is fed as the references are.")]
Pid = Annotated[int, typer.Option(help="With --url: process whose CPU and memory are measured.")]
AdminPort = Annotated[int, typer.Option(help="With --url: port of its metrics.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Report = Annotated[Path | None, typer.Option(help="Write a Markdown report here, and its plot beside it.")]


@loadtest_app.command()
def fanout(
    clients: Clients = 1_000,
    instruments: Instruments = 200,
    per_client: PerClient = 20,
    rate: Rate = 5_000,
    seconds: Seconds = 10,
    reference: Annotated[list[str] | None, typer.Option(help="Measure also: c, naive or broadcast.")] = None,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    feed_port: Feed = 0,
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Many clients on busy books: deliveries, latency from the due time, CPU per delivery."""
    from loadtest.fanout import Load, compare

    load = Load(clients, instruments, per_client, rate, seconds)
    server = _server(url, kafka, topic_prefix, feed_port, pid, admin_port)
    _finish(_run(compare(server, load, reference or [])), json_file, report)


@loadtest_app.command()
def connect(
    clients: Clients = 9_500,
    instruments: Instruments = 200,
    per_client: PerClient = 1,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Idle connections: memory of each, and how many come per second."""
    from loadtest.connect import measure_connections

    server = _server(url, kafka, topic_prefix, 0, pid, admin_port)
    _finish(_run(measure_connections(server, clients, instruments, per_client)), json_file, report)


@loadtest_app.command()
def slow(
    clients: Clients = 100,
    instruments: Instruments = 200,
    per_client: PerClient = 100,
    rate: Rate = 4_000,
    seconds: Seconds = 15,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Dead (5 %) and slow (20 %) clients among fast ones: who gets what, and whether all of it is accounted for."""
    from loadtest.fanout import Load
    from loadtest.slow import measure_slow

    server = _server(url, kafka, topic_prefix, 0, pid, admin_port)
    load = Load(clients, instruments, per_client, rate, seconds)
    _finish(_run(measure_slow(server, load)), json_file, report)


@loadtest_app.command()
def churn(
    clients: Clients = 1_000,
    instruments: Instruments = 200,
    per_client: PerClient = 5,
    rate: Rate = 1_000,
    seconds: Seconds = 20,
    per_s: PerS = 50,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Clients that come and go: memory, open files and latency meanwhile."""
    server = _server(url, kafka, topic_prefix, 0, pid, admin_port)
    _churn("churn", server, (clients, instruments, per_client, rate, seconds), per_s, json_file, report)


@loadtest_app.command()
def soak(
    clients: Clients = 10_000,
    instruments: Instruments = 200,
    per_client: PerClient = 1,
    rate: Rate = 500,
    seconds: Seconds = 600,
    per_s: PerS = 10,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """The same for long, with many: does the server's memory grow?"""
    server = _server(url, kafka, topic_prefix, 0, pid, admin_port)
    _churn("soak", server, (clients, instruments, per_client, rate, seconds), per_s, json_file, report)


def _churn(
    scenario: str,
    server: Any,  # noqa: ANN401
    load: tuple[int, int, int, float, float],
    per_s: float,
    json_file: Path | None,
    report: Path | None,
) -> None:
    from loadtest.churn import measure_churn
    from loadtest.fanout import Load

    _finish(_run(measure_churn(server, Load(*load), per_s, scenario)), json_file, report)


@loadtest_app.command()
def storm(
    clients: Clients = 2_000,
    instruments: Instruments = 200,
    per_client: PerClient = 5,
    rate: Rate = 500,
    seconds: Seconds = 10,
    url: Url = "",
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """All connections are cut and come back at once: how long until each has its books again."""
    from loadtest.churn import measure_storm
    from loadtest.fanout import Load

    server = _server(url, kafka, topic_prefix, 0, pid, admin_port)
    load = Load(clients, instruments, per_client, rate, seconds)
    _finish(_run(measure_storm(server, load)), json_file, report)


def _server(url: str, kafka: str, prefix: str, feed_port: int, pid: int, admin_port: int) -> Any:  # noqa: ANN401
    from loadtest.servers import Depthcast, Running

    if not url:
        return Depthcast(kafka)
    if bool(kafka) == bool(feed_port):
        _fail("--url needs --kafka HOST:PORT, where a depthcast reads, or --feed-port, where another peer is fed")
    feed = {"feed": feed_port} if feed_port else {"kafka": kafka, "topic": f"{prefix}.market"}
    return Running(url, feed, pid or None, admin_port or None)


def _finish(result: dict[str, Any], json_file: Path | None, report: Path | None) -> None:
    from loadtest.report import as_table, write_json, write_report

    typer.echo(as_table(result))
    if json_file is not None:
        write_json(result, json_file)
    if report is not None:
        write_report(result, report)


def _run(main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run a scenario on the generator's core, on uvloop where there is one."""
    from loadtest.processes import pin_generator

    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop as factory
    pin_generator()
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(main)
        except LoadTestError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"depthcast: {message}", err=True)
    raise typer.Exit(2)
