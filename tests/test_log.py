from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from gaman import App, Context, HTTPError

if TYPE_CHECKING:
    from tests.asgi import Ask

pytestmark = pytest.mark.anyio

HOSTILE = "\x00\x07\t\r\x1b[31m\x7f\x85\x9b\u2028\u2029\u202e"
FORMAT = logging.Formatter("%(levelname)s %(method)s %(path)s %(message)s")


def is_raw(text: str) -> bool:
    return not "".join(text.split("\n")).isprintable()


async def lines(app: App, ask: Ask, caplog: pytest.LogCaptureFixture, target: str, **asked: Any) -> str:
    """Return what a handler of logs makes of all records of one request."""
    caplog.set_level("DEBUG", "gaman")
    caplog.clear()
    await ask(app, target, **asked)
    assert caplog.records
    return "\n".join(FORMAT.format(record) for record in caplog.records)


@pytest.mark.parametrize("what", [HOSTILE, "a\nERROR forged", "\r\nERROR forged"], ids=repr)
@pytest.mark.parametrize("kind", ["detail", "cause", "fault", "chained", "group", "note", "gaman"])
async def test_what_a_client_sends_reaches_no_log_line_raw(
    ask: Ask, caplog: pytest.LogCaptureFixture, kind: str, what: str
) -> None:
    async def handler(ctx: Context) -> str:
        told = ctx.query["a"]
        assert told == what
        match kind:
            case "detail":
                raise HTTPError(503, told) from ValueError(told)
            case "cause":
                raise HTTPError(503) from OSError(told)
            case "chained":
                raise ValueError("no") from ValueError(told)
            case "group":
                raise ExceptionGroup(told, [ValueError(told)])
            case "note":
                error = ValueError("no")
                error.add_note(told)
                raise error
            case "gaman":
                ctx.cookies.set(told, told)
                return ""
            case _:
                raise ValueError(told)

    target = f"/x{quote(what)}?a={quote(what)}"
    app = App({"/:x": handler}, debug=True)
    told = await lines(app, ask, caplog, target, scope={"method": f"GE{HOSTILE}T"})
    assert not is_raw(told)
    assert "\nERROR forged" not in told
    assert "\\x1b[31m" in told


async def test_a_client_that_leaves_is_logged_without_control_characters(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> bytes:
        return await ctx.body()

    told = await lines(App({"/:x": handler}), ask, caplog, f"/{quote(HOSTILE)}", leaves=True)
    assert "the client left" in told
    assert not is_raw(told)


async def test_a_message_without_control_characters_keeps_its_arguments(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> str:
        raise ValueError("caf\xe9\nof two lines")

    told = await lines(App({"/:x": handler}), ask, caplog, "/caf%C3%A9")
    [record] = caplog.records
    assert record.args == ("GET", "/caf\xe9")
    assert told.endswith("ValueError: caf\xe9\n    of two lines")


@pytest.mark.parametrize("kind", ["cause", "context", "group", "group in a cause", "note", "syntax", "syntax message"])
async def test_no_text_in_a_traceback_passes_for_a_record(ask: Ask, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    forged = "\ngaman: FORGED"
    short, long = "can't parse x\ny", f"can't parse x\ny{forged}"

    async def handler(ctx: Context) -> str:
        inner, outer = ValueError(long), RuntimeError(short)
        match kind:
            case "cause":
                raise outer from inner
            case "context":
                try:
                    raise inner
                except ValueError:
                    raise outer  # noqa: B904
            case "group":
                raise ExceptionGroup(short, [inner, outer])
            case "group in a cause":
                raise outer from ExceptionGroup(short, [outer, ExceptionGroup(long, [inner])])
            case "note":
                outer.add_note(long)
                raise outer from inner
            case "syntax":
                raise SyntaxError("no", ("x", 1, 1, long))
            case _:
                raise SyntaxError(long, (long, 1, 1, "x"))

    told = await lines(App({"/": handler}), ask, caplog, "/")
    assert "gaman: FORGED" in told
    assert not any(line.startswith("gaman: FORGED") for line in told.split("\n"))
    assert "    gaman: FORGED" in told


async def test_the_notes_of_an_error_stay_as_they_are(ask: Ask) -> None:
    error = ValueError("a\nb")
    error.add_note("c\nd")

    async def handler(ctx: Context) -> str:
        raise error

    assert (await ask(App({"/": handler}))).status == 500
    assert (str(error), error.__notes__) == ("a\nb", ["c\nd"])


class Unspeakable(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


async def test_an_error_that_cannot_tell_of_itself_is_logged_and_answered(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(ctx: Context) -> str:
        raise Unspeakable

    async def refuse(ctx: Context) -> str:
        raise HTTPError(503) from Unspeakable()

    app = App({"/fail": fail, "/refuse": refuse})
    assert (await ask(app, "/fail")).status == 500
    assert "GET '/fail' failed" in caplog.text
    # pytest's own handler raises what a real one would print.
    logging.getLogger("gaman").propagate = False
    try:
        assert (await ask(app, "/refuse")).status == 503
    finally:
        logging.getLogger("gaman").propagate = True
