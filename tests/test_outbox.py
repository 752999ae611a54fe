from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from gaman._server._outbox import Outbox, Writer

pytestmark = pytest.mark.anyio

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"body"
ALONE, TOGETHER = [None], [None, None]


class Wire(asyncio.Transport):
    """What has gone out, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_lost = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_lost
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_lost

    def close(self) -> None:
        self.written.append(b"closed")
        self.is_lost = True


async def turn() -> None:
    """Let the loop come to the end of its turn."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def connect(outbox: Outbox, under_way: list[None]) -> tuple[Wire, Writer]:
    wire = Wire()
    return wire, Writer(wire, outbox, under_way)


async def test_a_single_response_in_flight_is_sent_at_once_and_in_one_piece() -> None:
    wire, transport = connect(Outbox(), ALONE)
    transport.begin(HEAD)
    assert wire.written == []
    transport.write(BODY)
    assert wire.written == [HEAD + BODY]
    await turn()
    assert wire.written == [HEAD + BODY]


async def test_responses_of_one_turn_are_sent_together_at_its_end() -> None:
    outbox = Outbox()
    connections = [connect(outbox, TOGETHER) for _ in range(3)]
    for _, transport in connections:
        transport.begin(HEAD)
        transport.write(BODY)
    assert [wire.written for wire, _ in connections] == [[], [], []]
    await turn()
    assert [wire.written for wire, _ in connections] == [[HEAD + BODY]] * 3
    for _, transport in connections:
        transport.begin(HEAD)
    await turn()
    assert [wire.written for wire, _ in connections] == [[HEAD + BODY, HEAD]] * 3


async def test_a_head_without_a_body_waits_no_longer_than_the_turn() -> None:
    wire, transport = connect(Outbox(), ALONE)
    transport.begin(HEAD)
    await turn()
    transport.write(BODY)
    transport.write(BODY)
    assert wire.written == [HEAD, BODY, BODY]


async def test_a_stream_without_pauses_buffers_no_more_than_a_small_response() -> None:
    wire, transport = connect(Outbox(), TOGETHER)
    transport.begin(HEAD)
    for _ in range(10):
        transport.write(b"x" * 1000)
    assert b"".join(wire.written) == HEAD + b"x" * 10_000
    assert [len(each) for each in wire.written] == [len(HEAD) + 5000, *[1000] * 5]


async def test_a_large_response_is_sent_at_once() -> None:
    wire, transport = connect(Outbox(), TOGETHER)
    transport.begin(HEAD)
    transport.write(b"x" * 100_000)
    assert wire.written == [HEAD + b"x" * 100_000]


async def test_writes_of_one_turn_keep_their_order() -> None:
    wire, transport = connect(Outbox(), TOGETHER)
    for octets in (HEAD, BODY, HEAD, b"HTTP/1.1 is what this body begins with"):
        transport.write(octets)
    await turn()
    assert b"".join(wire.written) == HEAD + BODY + HEAD + b"HTTP/1.1 is what this body begins with"


class Broken(Wire):
    """A transport whose writes fail."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError("the transport is broken")


async def test_a_write_that_raises_does_not_affect_other_responses() -> None:
    reported: list[BaseException | None] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    outbox = Outbox()
    wires = [Wire(), Broken(), Wire(), Broken(), Wire()]
    for wire in wires:
        writer = Writer(wire, outbox, TOGETHER)
        writer.begin(HEAD)
        writer.write(BODY)
    for _ in wires:
        await turn()
    assert [wire.written for wire in wires] == [[HEAD + BODY], [], [HEAD + BODY], [], [HEAD + BODY]]
    assert [str(error) for error in reported] == ["the transport is broken"] * 2


async def test_closing_first_sends_what_is_buffered() -> None:
    wire, transport = connect(Outbox(), TOGETHER)
    transport.begin(HEAD)
    transport.write(BODY)
    transport.close()
    await turn()
    assert wire.written == [HEAD + BODY, b"closed"]


async def test_a_client_that_has_disconnected_does_not_affect_other_responses() -> None:
    outbox = Outbox()
    (lost, first), (wire, second) = connections = [connect(outbox, TOGETHER) for _ in range(2)]
    for _, transport in connections:
        transport.begin(HEAD)
    lost.is_lost = True
    await turn()
    assert (lost.written, wire.written) == ([], [HEAD])
    first.begin(HEAD)
    second.begin(HEAD)
    await turn()
    assert (lost.written, wire.written) == ([], [HEAD, HEAD])


def test_responses_of_a_slow_turn_are_sent_at_once() -> None:
    async def answer() -> list[list[bytes]]:
        outbox = Outbox()
        connections = [connect(outbox, TOGETHER) for _ in range(2)]
        await asyncio.sleep(0)
        for _, transport in connections:
            # As a handler does that computes: a turn is slow by the real clock alone.
            time.sleep(0.01)
            transport.begin(HEAD)
            transport.write(BODY)
        return [wire.written for wire, _ in connections]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(answer()) == [[HEAD + BODY], [HEAD + BODY]]


def test_a_response_from_before_a_turn_became_slow_is_sent_at_once_as_well() -> None:
    async def answer() -> list[list[bytes]]:
        outbox = Outbox()
        (early, first), (late, second) = (connect(outbox, TOGETHER) for _ in range(2))
        await asyncio.sleep(0)
        first.begin(HEAD)
        time.sleep(0.01)
        second.begin(HEAD)
        second.write(BODY)
        return [early.written, late.written]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(answer()) == [[HEAD], [HEAD + BODY]]
