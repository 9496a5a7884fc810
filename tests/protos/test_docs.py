"""docs/protocol.md says what the code does."""

import json
import re
from pathlib import Path

from protos import wire
from protos.codec import CODECS
from protos.messages import DEPTHS, INTERVALS_MS, Channel, CloseCode, Flag, NoticeCode
from protos.tick import CONTENT_JSON, decode_tick

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the tables in a section, without their head."""
    section = TEXT.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-"}]


def test_close_codes() -> None:
    documented = {row[1]: int(row[0]) for row in rows("Close codes") if row[0].isdigit()}
    assert documented == {code.name: int(code) for code in CloseCode}


def test_terminal_codes_say_so() -> None:
    for code, _, _, client in (row for row in rows("Close codes") if row[0].isdigit()):
        assert ("stays away" in client) == (code in ("1000", "1008") or code.startswith("44"))


def test_flags() -> None:
    documented = {row[0]: int(row[1]) for row in rows("Chains") if row[1].isdigit()}
    assert documented == {flag.name: int(flag) for flag in Flag if flag}


def test_subprotocols() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("Subprotocols")[1:]}
    assert documented == {name: "binary" if codec.binary else "text" for name, codec in CODECS.items()}


def test_channels_depths_and_intervals() -> None:
    table = {row[0].strip("`"): row for row in rows("Streams")[1:]}
    assert set(table) == {channel.name.lower() for channel in Channel if channel}
    assert tuple(int(depth) for depth in re.findall(r"\d+", table["book"][2])) == DEPTHS
    assert tuple(int(interval) for interval in re.findall(r"\d+", table["book"][3])) == INTERVALS_MS


def test_notices() -> None:
    section = TEXT.partition("**Notices.**")[2].partition("\n## ")[0]
    assert re.findall(r"([A-Z_]{3,}):", section) == [code.name for code in NoticeCode if code]


def test_messagepack_layout() -> None:
    documented = [(int(number), name, fields) for number, name, fields in rows("MessagePack layout")[1:]]
    expected = []
    for prefix, shapes in (("", wire.SERVER_SHAPES), ("command ", wire.COMMAND_SHAPES)):
        for shape in shapes:
            names = [field.name for field in shape.fields]
            if shape.fields[: len(wire.HEADER)] == wire.HEADER:
                names[: len(wire.HEADER)] = ["header"]
            expected.append((shape.number, prefix + shape.name, ", ".join(names)))
    assert documented == expected


def test_commands() -> None:
    for shape, (name, fields, _) in zip(wire.COMMAND_SHAPES, rows("Commands")[1:], strict=True):
        documented = [field.strip() for field in re.sub(r"\{.*\}", "", fields).split(",") if field.strip()]
        assert [name.strip("`"), "id", *documented] == [shape.name, *(field.name for field in shape.fields)]


def test_examples_are_valid() -> None:
    json_codec = CODECS["depthcast.v1.json"]
    examples = [line for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(examples) == 6
    for example in examples:
        if "version" in json.loads(example):
            assert decode_tick(example.encode(), CONTENT_JSON).sequence == 2
        else:
            command = json_codec.decode_command(example.encode())
            assert json_codec.decode_command(json_codec.encode_command(command)) == command
