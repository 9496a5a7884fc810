"""The command ``depthcast loadtest``: options in, one function call out."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
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
CertFile = Annotated[
    Path | None, typer.Option("--ssl-certfile", help="PEM file: the server that is started serves over TLS.")
]
KeyFile = Annotated[Path | None, typer.Option("--ssl-keyfile", help="PEM file with the key of --ssl-certfile.")]
CaFile = Annotated[Path | None, typer.Option(help="With --url wss://...: PEM file with the authority to trust.")]
Kafka = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of a real Kafka; without it one is started for the test. With --url: where the server reads; "
        "without it the server's own feed is measured."
    ),
]
Prefix = Annotated[str, typer.Option("--topic-prefix", help="With --url: of the topics that the server reads.")]
Feed = Annotated[int, typer.Option("--feed-port", help="With --url: port of a peer that is fed as the references are.")]
Pid = Annotated[int, typer.Option(help="With --url: process whose CPU and memory are measured.")]
AdminPort = Annotated[int, typer.Option(help="With --url: port of its metrics.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Report = Annotated[Path | None, typer.Option(help="Write a Markdown report here, and its plot beside it.")]
Mix = Annotated[
    bool,
    typer.Option(
        "--mix",
        help="Real mix: simulated ticks through Kafka, ingest and Kafka; clients take book 10@100ms, trades and bbo. "
        "--rate is in ticks.",
    ),
]
P99Max = Annotated[
    float, typer.Option(min=0.0, help="Search the highest rate whose p99 is within so many ms; from --rate upwards.")
]
Tries = Annotated[
    int, typer.Option(min=1, max=100, help="With --p99-max-ms: tries of each rate, which is good when one of them is.")
]


@loadtest_app.command()
def fanout(
    clients: Clients = 1_000,
    instruments: Instruments = 200,
    per_client: PerClient = 20,
    rate: Annotated[float, typer.Option(min=0, max=1e6, help="Updates per second; 0: 5000, with --mix 1000.")] = 0,
    seconds: Seconds = 10,
    reference: Annotated[
        list[str] | None, typer.Option(help="Measure also: c, python, python-books, naive or broadcast.")
    ] = None,
    mix: Mix = False,
    p99_max_ms: P99Max = 0,
    tries: Tries = 3,
    url: Url = "",
    ca_file: CaFile = None,
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    feed_port: Feed = 0,
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Many clients on busy books: deliveries, latency from the due time, CPU per delivery."""
    from loadtest.fanout import Load, compare
    from loadtest.mix import MIX, WholePath
    from loadtest.search import compare_highest

    load = Load(clients, instruments, per_client, rate or (1_000 if mix else 5_000), seconds)
    certificate = _certificate(ssl_certfile, ssl_keyfile)
    server = _server(url, kafka, topic_prefix, feed_port, pid, admin_port, ca_file, certificate)
    if mix:
        if reference or feed_port or p99_max_ms or (url and kafka):
            _fail("--mix takes none of --reference, --feed-port, --p99-max-ms; with --url also no --kafka")
        load = replace(load, subscriptions=MIX)
        server = server if url else WholePath(load.rate, kafka)
    search = compare_highest(server, load, reference or [], p99_max_ms, tries) if p99_max_ms else None
    _finish(_run(search or compare(server, load, reference or [])), json_file, report)


@loadtest_app.command()
def connect(
    clients: Clients = 9_500,
    instruments: Instruments = 200,
    per_client: PerClient = 1,
    url: Url = "",
    ca_file: CaFile = None,
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Idle connections: memory of each, and how many come per second."""
    from loadtest.connect import measure_connections

    certificate = _certificate(ssl_certfile, ssl_keyfile)
    server = _server(url, kafka, topic_prefix, 0, pid, admin_port, ca_file, certificate)
    _finish(_run(measure_connections(server, clients, instruments, per_client)), json_file, report)


@loadtest_app.command()
def slow(
    clients: Clients = 100,
    instruments: Instruments = 200,
    per_client: PerClient = 100,
    rate: Rate = 4_000,
    seconds: Seconds = 15,
    url: Url = "",
    ca_file: CaFile = None,
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

    server = _server(url, kafka, topic_prefix, 0, pid, admin_port, ca_file)
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
    ca_file: CaFile = None,
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Clients that come and go: memory, open files and latency meanwhile."""
    server = _server(url, kafka, topic_prefix, 0, pid, admin_port, ca_file)
    _churn(server, (clients, instruments, per_client, rate, seconds), per_s, json_file, report, long=False)


@loadtest_app.command()
def soak(
    clients: Clients = 10_000,
    instruments: Instruments = 200,
    per_client: PerClient = 1,
    rate: Rate = 500,
    seconds: Seconds = 600,
    per_s: PerS = 10,
    url: Url = "",
    ca_file: CaFile = None,
    kafka: Kafka = "",
    topic_prefix: Prefix = "depthcast",
    pid: Pid = 0,
    admin_port: AdminPort = 0,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """The same for long, with many: does the server's memory grow?"""
    server = _server(url, kafka, topic_prefix, 0, pid, admin_port, ca_file)
    _churn(server, (clients, instruments, per_client, rate, seconds), per_s, json_file, report, long=True)


def _churn(
    server: Any,  # noqa: ANN401
    load: tuple[int, int, int, float, float],
    per_s: float,
    json_file: Path | None,
    report: Path | None,
    *,
    long: bool,
) -> None:
    from loadtest.churn import measure_churn
    from loadtest.fanout import Load

    _finish(_run(measure_churn(server, Load(*load), per_s, long=long)), json_file, report)


@loadtest_app.command()
def storm(
    clients: Clients = 2_000,
    instruments: Instruments = 200,
    per_client: PerClient = 5,
    rate: Rate = 500,
    seconds: Seconds = 10,
    url: Url = "",
    ca_file: CaFile = None,
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

    server = _server(url, kafka, topic_prefix, 0, pid, admin_port, ca_file)
    load = Load(clients, instruments, per_client, rate, seconds)
    _finish(_run(measure_storm(server, load)), json_file, report)


def _certificate(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate is None:
        return None
    for file in (certificate, key or certificate):
        if not file.is_file():
            _fail(f"there is no file {file}")
    return certificate, key or certificate


def _server(
    url: str,
    kafka: str,
    prefix: str,
    feed_port: int,
    pid: int,
    admin_port: int,
    ca_file: Path | None,
    certificate: tuple[Path, Path] | None = None,
) -> Any:  # noqa: ANN401
    from loadtest.servers import Depthcast, Running

    if not url:
        return Depthcast(kafka, certificate=certificate)
    if kafka and feed_port:
        _fail("--kafka is where a depthcast reads, --feed-port where another peer is fed: give one of them")
    feed: dict[str, Any] = {"feed": feed_port} if feed_port else {}
    if kafka:
        feed = {"kafka": kafka, "topic": f"{prefix}.market"}
    return Running(url, feed, pid or None, admin_port or None, ca_file)


def _finish(result: dict[str, Any], json_file: Path | None, report: Path | None) -> None:
    from loadtest.report import as_table, write_json, write_report

    typer.echo(as_table(result))
    if json_file is not None:
        write_json(result, json_file)
    if report is not None:
        write_report(result, report)


def _run(main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run a scenario on the generator's core, on uvloop where there is one."""
    from loadtest.processes import pin_generator, raise_descriptor_limit

    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop as factory
    pin_generator()
    raise_descriptor_limit()
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
