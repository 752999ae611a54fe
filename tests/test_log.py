from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from gaman import App, Context, HTTPError

if TYPE_CHECKING:
    from tests.asgi import Fetch

pytestmark = pytest.mark.anyio

HOSTILE = "\x00\x07\t\r\x1b[31m\x7f\x85\x9b\u2028\u2029\u202e"
FORMAT = logging.Formatter("%(levelname)s %(method)s %(path)s %(message)s")


def is_raw(text: str) -> bool:
    return not "".join(text.split("\n")).isprintable()


async def lines(app: App, fetch: Fetch, caplog: pytest.LogCaptureFixture, target: str, **asked: Any) -> str:
    """Return all records of one request as a logging handler formats them."""
    caplog.set_level("DEBUG", "gaman")
    caplog.clear()
    await fetch(app, target, **asked)
    assert caplog.records
    return "\n".join(FORMAT.format(record) for record in caplog.records)


@pytest.mark.parametrize("what", [HOSTILE, "a\nERROR forged", "\r\nERROR forged"], ids=repr)
@pytest.mark.parametrize("kind", ["detail", "cause", "fault", "chained", "group", "note", "gaman"])
async def test_control_characters_of_a_client_are_escaped_in_the_log(
    fetch: Fetch, caplog: pytest.LogCaptureFixture, kind: str, what: str
) -> None:
    async def handler(ctx: Context) -> str:
        text = ctx.query["a"]
        assert text == what
        match kind:
            case "detail":
                raise HTTPError(503, text) from ValueError(text)
            case "cause":
                raise HTTPError(503) from OSError(text)
            case "chained":
                raise ValueError("no") from ValueError(text)
            case "group":
                raise ExceptionGroup(text, [ValueError(text)])
            case "note":
                error = ValueError("no")
                error.add_note(text)
                raise error
            case "gaman":
                ctx.cookies.set(text, text)
                return ""
            case _:
                raise ValueError(text)

    target = f"/x{quote(what)}?a={quote(what)}"
    app = App({"/:x": handler}, debug=True)
    logged = await lines(app, fetch, caplog, target, scope={"method": f"GE{HOSTILE}T"})
    assert not is_raw(logged)
    assert "\nERROR forged" not in logged
    assert "\\x1b[31m" in logged


async def test_a_disconnect_is_logged_without_control_characters(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> bytes:
        return await ctx.body()

    logged = await lines(App({"/:x": handler}), fetch, caplog, f"/{quote(HOSTILE)}", disconnects=True)
    assert "the client disconnected" in logged
    assert not is_raw(logged)


async def test_a_message_without_control_characters_keeps_its_arguments(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> str:
        raise ValueError("caf\xe9\nof two lines")

    logged = await lines(App({"/:x": handler}), fetch, caplog, "/caf%C3%A9")
    [record] = caplog.records
    assert record.args == ("GET", "/caf\xe9")
    assert logged.endswith("ValueError: caf\xe9\n    of two lines")


@pytest.mark.parametrize("kind", ["cause", "context", "group", "group in a cause", "note", "syntax", "syntax message"])
async def test_no_text_in_a_traceback_looks_like_a_record(fetch: Fetch, caplog: pytest.LogCaptureFixture, kind: str) -> None:
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

    logged = await lines(App({"/": handler}), fetch, caplog, "/")
    assert "gaman: FORGED" in logged
    assert not any(line.startswith("gaman: FORGED") for line in logged.split("\n"))
    assert "    gaman: FORGED" in logged


async def test_the_notes_of_an_error_stay_unchanged(fetch: Fetch) -> None:
    error = ValueError("a\nb")
    error.add_note("c\nd")

    async def handler(ctx: Context) -> str:
        raise error

    assert (await fetch(App({"/": handler}))).status == 500
    assert (str(error), error.__notes__) == ("a\nb", ["c\nd"])


class BrokenStrError(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


async def test_an_error_whose_str_fails_is_logged_and_answered(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(ctx: Context) -> str:
        raise BrokenStrError

    async def refuse(ctx: Context) -> str:
        raise HTTPError(503) from BrokenStrError()

    app = App({"/fail": fail, "/refuse": refuse})
    assert (await fetch(app, "/fail")).status == 500
    assert "GET '/fail' failed" in caplog.text
    # pytest's handler raises the error, which a real handler would print.
    logging.getLogger("gaman").propagate = False
    try:
        assert (await fetch(app, "/refuse")).status == 503
    finally:
        logging.getLogger("gaman").propagate = True
