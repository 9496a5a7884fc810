"""The three codecs, by WebSocket subprotocol."""

from typing import Protocol

from protos.codec_json import JsonCodec
from protos.codec_msgpack import MsgpackCodec
from protos.codec_proto import ProtoCodec
from protos.messages import Command, Scale, ServerMessage
from protos.wire import CodecError

__all__ = ["CODECS", "Codec", "CodecError"]


class Codec(Protocol):
    """Messages to bytes and back. ``b"".join(chunks)`` is a frame.

    Decoders raise only `CodecError`, whatever the bytes.
    """

    @property
    def name(self) -> str:
        """The subprotocol."""

    @property
    def binary(self) -> bool:
        """True: binary WebSocket frames; False: text."""

    def encode(self, message: ServerMessage, scale: Scale | None = None) -> bytes:
        """One chunk. ``scale`` is the instrument's, for messages that carry none; only JSON needs it.

        Raises:
            ValueError: A number does not fit the wire, or JSON lacks the scale: our fault.
        """

    def decode(self, frame: bytes) -> list[ServerMessage]:
        """The messages of a frame; those that this version does not know are left out.

        Raises:
            CodecError: The bytes are not a frame.
        """

    def encode_command(self, command: Command) -> bytes:
        """One WebSocket message from the client."""

    def decode_command(self, data: bytes) -> Command:
        """The client's command.

        Raises:
            CodecError: It is not one command, has an unknown enum, or a field is out of range.
        """


CODECS: dict[str, Codec] = {codec.name: codec for codec in (ProtoCodec(), MsgpackCodec(), JsonCodec())}
"""By subprotocol, the preferred first."""
