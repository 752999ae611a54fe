"""The outbox and its writers, without a server: what is written when, and in how many pieces."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from gaman._server._outbox import Outbox, Writer

pytestmark = pytest.mark.anyio

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"body"
ONE_IN_FLIGHT, TWO_IN_FLIGHT = [None], [None, None]


class Wire(asyncio.Transport):
    """A transport that records each write."""

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
    """Wait until the loop's turn has ended."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def connect(outbox: Outbox, in_flight: list[None]) -> tuple[Wire, Writer]:
    wire = Wire()
    return wire, Writer(wire, outbox, in_flight)


async def test_a_single_response_in_flight_is_sent_at_once_and_in_one_piece() -> None:
    wire, writer = connect(Outbox(), ONE_IN_FLIGHT)
    writer.begin(HEAD)
    assert wire.written == []
    writer.write(BODY)
    assert wire.written == [HEAD + BODY]
    await turn()
    assert wire.written == [HEAD + BODY]


async def test_responses_of_one_turn_are_sent_together_at_its_end() -> None:
    outbox = Outbox()
    connections = [connect(outbox, TWO_IN_FLIGHT) for _ in range(3)]
    for _, writer in connections:
        writer.begin(HEAD)
        writer.write(BODY)
    assert [wire.written for wire, _ in connections] == [[], [], []]
    await turn()
    assert [wire.written for wire, _ in connections] == [[HEAD + BODY]] * 3
    for _, writer in connections:
        writer.begin(HEAD)
    await turn()
    assert [wire.written for wire, _ in connections] == [[HEAD + BODY, HEAD]] * 3


async def test_a_head_without_a_body_waits_no_longer_than_the_turn() -> None:
    wire, writer = connect(Outbox(), ONE_IN_FLIGHT)
    writer.begin(HEAD)
    await turn()
    writer.write(BODY)
    writer.write(BODY)
    assert wire.written == [HEAD, BODY, BODY]


async def test_a_stream_without_pauses_buffers_no_more_than_a_small_response() -> None:
    wire, writer = connect(Outbox(), TWO_IN_FLIGHT)
    writer.begin(HEAD)
    for _ in range(10):
        writer.write(b"x" * 1000)
    assert b"".join(wire.written) == HEAD + b"x" * 10_000
    assert [len(each) for each in wire.written] == [len(HEAD) + 5000, *[1000] * 5]


async def test_a_large_response_is_sent_at_once() -> None:
    wire, writer = connect(Outbox(), TWO_IN_FLIGHT)
    writer.begin(HEAD)
    writer.write(b"x" * 100_000)
    assert wire.written == [HEAD + b"x" * 100_000]


async def test_writes_of_one_turn_keep_their_order() -> None:
    wire, writer = connect(Outbox(), TWO_IN_FLIGHT)
    for octets in (HEAD, BODY, HEAD, b"HTTP/1.1 is what this body begins with"):
        writer.write(octets)
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
        writer = Writer(wire, outbox, TWO_IN_FLIGHT)
        writer.begin(HEAD)
        writer.write(BODY)
    for _ in wires:
        await turn()
    assert [wire.written for wire in wires] == [[HEAD + BODY], [], [HEAD + BODY], [], [HEAD + BODY]]
    assert [str(error) for error in reported] == ["the transport is broken"] * 2


async def test_closing_first_sends_what_is_buffered() -> None:
    wire, writer = connect(Outbox(), TWO_IN_FLIGHT)
    writer.begin(HEAD)
    writer.write(BODY)
    writer.close()
    await turn()
    assert wire.written == [HEAD + BODY, b"closed"]


async def test_a_client_that_has_disconnected_does_not_affect_other_responses() -> None:
    outbox = Outbox()
    (lost, first), (wire, second) = connections = [connect(outbox, TWO_IN_FLIGHT) for _ in range(2)]
    for _, writer in connections:
        writer.begin(HEAD)
    lost.is_lost = True
    await turn()
    assert (lost.written, wire.written) == ([], [HEAD])
    first.begin(HEAD)
    second.begin(HEAD)
    await turn()
    assert (lost.written, wire.written) == ([], [HEAD, HEAD])


def test_responses_of_a_slow_turn_are_sent_at_once() -> None:
    async def respond() -> list[list[bytes]]:
        outbox = Outbox()
        connections = [connect(outbox, TWO_IN_FLIGHT) for _ in range(2)]
        await asyncio.sleep(0)
        for _, writer in connections:
            # Like a handler that computes: only the real clock shows that the turn is slow.
            time.sleep(0.01)
            writer.begin(HEAD)
            writer.write(BODY)
        return [wire.written for wire, _ in connections]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(respond()) == [[HEAD + BODY], [HEAD + BODY]]


def test_a_response_from_before_a_turn_became_slow_is_sent_at_once_as_well() -> None:
    async def respond() -> list[list[bytes]]:
        outbox = Outbox()
        (early, first), (late, second) = (connect(outbox, TWO_IN_FLIGHT) for _ in range(2))
        await asyncio.sleep(0)
        first.begin(HEAD)
        time.sleep(0.01)
        second.begin(HEAD)
        second.write(BODY)
        return [early.written, late.written]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(respond()) == [[HEAD], [HEAD + BODY]]
