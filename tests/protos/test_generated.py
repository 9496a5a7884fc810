"""The committed protobuf code is what the pinned generator makes of the schema."""

import sys
from pathlib import Path
from subprocess import run

import pytest

from protos import depthcast_pb2 as pb
from protos import messages, wire
from protos.tick import TickKind

PROTOS = Path(__file__).parents[2] / "protos"


@pytest.mark.parametrize("name", ["depthcast_pb2.py", "depthcast_pb2.pyi"])
def test_regenerating_gives_the_committed_file(name: str, tmp_path: Path) -> None:
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--plugin=protoc-gen-mypy={plugin}"]
    run([*command, f"--python_out={tmp_path}", f"--mypy_out={tmp_path}", "depthcast.proto"], check=True)
    assert (tmp_path / name).read_text() == (PROTOS / name).read_text(), (
        "depthcast.proto changed: run the command in the docstring of protos/codec_proto.py"
    )


ENUMS = {
    "Flag": ("FLAG", messages.Flag),
    "Side": ("SIDE", messages.Side),
    "BookState": ("BOOK_STATE", messages.BookState),
    "Reason": ("REASON", messages.Reason),
    "NoticeCode": ("NOTICE", messages.NoticeCode),
    "Channel": ("CHANNEL", messages.Channel),
    "ErrorCode": ("ERROR", messages.ErrorCode),
    "SlowPolicy": ("SLOW_POLICY", messages.SlowPolicy),
    "TickKind": ("TICK_KIND", TickKind),
}


def test_every_enum_of_the_schema_is_the_same_in_python() -> None:
    assert set(pb.DESCRIPTOR.enum_types_by_name) == set(ENUMS)
    for name, (prefix, enum) in ENUMS.items():
        schema = {value.name: value.number for value in pb.DESCRIPTOR.enum_types_by_name[name].values}
        schema.pop("TICK_KIND_UNKNOWN", None)  # a tick of unknown kind is refused, so it has no Python value
        assert schema == {f"{prefix}_{key}": int(value) for key, value in enum.__members__.items()}


def test_every_message_of_the_oneof_has_its_shape() -> None:
    chunk = {field.name: field.number for field in pb.DESCRIPTOR.message_types_by_name["Chunk"].fields}
    assert chunk == {shape.name: shape.number for shape in wire.SERVER_SHAPES}
    command = {field.name: field.number for field in pb.DESCRIPTOR.message_types_by_name["Command"].fields}
    assert command == {"id": 1} | {shape.name: shape.number for shape in wire.COMMAND_SHAPES}
