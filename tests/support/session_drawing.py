"""The session table as docs/protocol.md draws it. `python -m tests.support.session_drawing` draws it anew.

Nothing here knows what a command does: each of the table's commands, and each event that is no command, is played to a
session in each state, and an arrow is what the session did.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from protos.messages import Auth, Channel, CloseCode, Command, Error, Ping, Restore, Subscribe, Unsubscribe
from streamer.access import EVERYTHING, NEVER_NS, Access, Refusal
from streamer.effects import DoAdmit, DoClose, DoPing, Effect, Reply
from streamer.limits import Limits
from streamer.session import _TABLE, Session, State

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
BEGIN, END = "<!-- drawn from streamer/session.py -->\n", "<!-- end of the drawing -->\n"
LIMITS = Limits()
EXPIRES_NS = 600_000_000_000
NAME = "x:spot:A"

COMMANDS: dict[type, list[tuple[str, Command]]] = {
    Subscribe: [("subscribe", Subscribe(1, NAME, Channel.BOOK))],
    Restore: [("restore", Restore(1, "s0"))],
    Unsubscribe: [("unsubscribe", Unsubscribe(1, 3))],
    Ping: [("ping", Ping(1))],
    Auth: [("auth", Auth(1, "good")), ("auth, wrong", Auth(1, "wrong")), ("auth, revoked", Auth(1, "revoked"))],
}


class Catalog:
    ready = True

    def knows(self, instrument: str) -> bool:
        return instrument == NAME


class Door:
    def check(self, token: str, now_ns: int) -> Access | Refusal:
        if token == "good":
            return Access("desk", "t2", expires_ns=now_ns + EXPIRES_NS)
        return Refusal(CloseCode.FORBIDDEN if token == "revoked" else CloseCode.UNAUTHORIZED, token)


def session_in(state: State) -> Session:
    """One whose client has a token, unless it is ANONYMOUS."""
    access = None if state is State.ANONYMOUS else Access("desk", "t1", expires_ns=EXPIRES_NS)
    session = Session("s1", LIMITS, Catalog(), {3}, 0, Door(), access)
    if state is State.DRAINING:
        session.drain(1)
    assert session.state is state
    return session


def _until_closed(play: Callable[[Session, int], list[Effect]], most: int) -> Callable[[Session], list[Effect]]:
    def play_on(session: Session) -> list[Effect]:
        effects: list[Effect] = []
        for i in range(most):
            effects = play(session, i) or effects
            if session.state is State.CLOSED:
                break
        return effects

    return play_on


EVENTS: dict[str, Callable[[Session], list[Effect]]] = {
    "ten bad commands": _until_closed(lambda session, i: session.bad_command(i), LIMITS.bad_commands_max),
    "too many commands": _until_closed(lambda session, i: session.receive(Ping(i), 0), LIMITS.commands_burst + 20),
    "no token in time": lambda session: session.expire(session.due_ns),
    "token expired": lambda session: session.expire(EXPIRES_NS),
    "silence": lambda session: session.tick(LIMITS.heartbeat_interval_ms * 1_000_000 * 10),
    "drain": lambda session: session.drain(1),
}
ONLY_IN = {"no token in time": (State.ANONYMOUS,), "token expired": (State.OPEN, State.DRAINING)}


def said(effects: list[Effect]) -> str:
    """The last word: a close code, an error, or nothing."""
    for effect in reversed(effects):
        if isinstance(effect, DoClose):
            return str(int(effect.code))
        if isinstance(effect, Reply) and isinstance(effect.message, Error):
            return effect.message.code.name
    return ""


def played() -> Iterator[tuple[State, State, str, list[Effect]]]:
    """From, to, what happened, and what the session did about it."""
    for state, row in _TABLE.items():
        for kind in row:
            for label, command in COMMANDS[kind]:
                session = session_in(state)
                effects = session.receive(command, 1)
                yield state, session.state, label, effects
        for label, play in EVENTS.items():
            if state in ONLY_IN.get(label, (state,)):
                session = session_in(state)
                effects = play(session)
                yield state, session.state, label, effects


def drawing() -> str:
    """Mermaid, and below it the table: what each command gets in each state."""
    arrows: defaultdict[tuple[State, State], list[str]] = defaultdict(list)
    cells: defaultdict[str, dict[State, str]] = defaultdict(dict)
    commands = {label for played_as in COMMANDS.values() for label, _ in played_as}
    for state, to, label, effects in played():
        word = said(effects)
        if state is not to:
            arrows[state, to].append(f"{label} ({word})" if word else label)
        if label in commands:
            cells[label][state] = _cell(effects, word, state is not to)
    first = {session_in(State.ANONYMOUS).state: "a token is asked for", _without_door().state: "none is asked for"}
    return "".join(
        [
            *("```mermaid\n", "stateDiagram-v2\n"),
            *(f"    [*] --> {state.name}: {why}\n" for state, why in first.items()),
            *(f"    {a.name} --> {b.name}: {'<br>'.join(labels)}\n" for (a, b), labels in arrows.items()),
            *(f"    {State.CLOSED.name} --> [*]\n", "```\n\n"),
            f"| | {' | '.join(state.name for state in _TABLE)} |\n",
            f"|---|{'---|' * len(_TABLE)}\n",
            *(f"| {label} | {' | '.join(row[state] for state in _TABLE)} |\n" for label, row in cells.items()),
        ]
    )


def _without_door() -> Session:
    session = Session("s1", LIMITS, Catalog(), {3}, 0)
    assert (session.access, session.due_ns) == (EVERYTHING, NEVER_NS)
    return session


def _cell(effects: list[Effect], word: str, moved: bool) -> str:
    if word:
        return f"close {word}" if word.isdigit() else word
    done = [effect for effect in effects if not isinstance(effect, DoAdmit | DoPing)]
    name = type(done[0].message if isinstance(done[0], Reply) else done[0]).__name__
    reply = {"DoSubscribe": "Subscribed", "DoUnsubscribe": "Unsubscribed", "DoRestore": "Restored"}.get(name, name)
    return f"{reply}, and OPEN" if moved else reply


def page_with(text: str) -> str:
    """docs/protocol.md with ``text`` as its drawing."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{text}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(drawing()))
