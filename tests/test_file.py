from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gaman import App, Context, HTTPError, Response, ResultError, _file, define_integration, define_routes
from tests.serving import SERVES, Connection, Program, get, request, running_script, until

if TYPE_CHECKING:
    from tests.asgi import Exchange, Fetch

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 1_000
MODIFIED = 1_700_000_000
BEFORE, SAME, AFTER = (formatdate(MODIFIED + seconds, usegmt=True) for seconds in (-60, 0, 60))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "data.bin").write_bytes(CONTENT)
    (root / "page.html").write_text("<p>caf\xe9")
    (root / "empty.txt").touch()
    (root / "sub" / "inner.txt").write_text("inner")
    (root / "a b\xe9.txt").write_text("odd name")
    (root / "..hidden").write_text("two dots and more")
    (root / "sub" / ".hidden").write_text("hidden")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "x.txt").write_text("secret")
    (root / "inside").symlink_to(root / "sub" / "inner.txt")
    (root / "outside").symlink_to(tmp_path / "secret.txt")
    (root / "outside-dir").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    os.utime(root / "data.bin", (MODIFIED, MODIFIED))
    return root


@pytest.fixture
def app(root: Path) -> App:
    async def file(ctx: Context) -> Response:
        return Response.file(ctx.params["name"], root=root)

    async def query(ctx: Context) -> Response:
        return Response.file(ctx.query.get("name", ""), root=root)

    return App({"/files/:name": file, "/files": query})


async def tag(fetch: Fetch, app: App) -> str:
    return (await fetch(app, "/files/data.bin")).headers["etag"]


def partial(response: Exchange) -> tuple[int, str | None, int]:
    assert response.status == 304 or int(response.headers["content-length"]) == len(response.body)
    return response.status, response.headers.get("content-range"), len(response.body)


# Found or not


async def test_a_file_is_sent_with_the_fields_that_describe_it(fetch: Fetch, app: App) -> None:
    response = await fetch(app, "/files/data.bin")
    assert (response.status, response.body) == (200, CONTENT)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(CONTENT))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["last-modified"] == SAME
    assert response.headers["etag"].startswith('"')


async def test_a_file_comes_in_chunks_of_bounded_size(fetch: Fetch, app: App) -> None:
    response = await fetch(app, "/files/data.bin")
    assert max(len(message["body"]) for message in response.messages[1:]) <= 65_536


async def test_head_of_a_file_has_the_same_headers_and_no_body(fetch: Fetch, app: App) -> None:
    get, head = await fetch(app, "/files/data.bin"), await fetch(app, "/files/data.bin", "HEAD")
    assert head.body == b""
    assert dict(head.headers) == dict(get.headers)


async def test_an_empty_file_is_sent(fetch: Fetch, app: App) -> None:
    response = await fetch(app, "/files/empty.txt")
    assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/files/sub%2Finner.txt", "inner"),
        ("/files?name=sub/inner.txt", "inner"),
        ("/files?name=/sub/inner.txt", "inner"),
        ("/files/a%20b%C3%A9.txt", "odd name"),
        ("/files/inside", "inner"),
    ],
)
async def test_a_file_below_the_root_is_found(fetch: Fetch, app: App, target: str, text: str) -> None:
    response = await fetch(app, target)
    assert (response.status, response.text) == (200, text)


@pytest.mark.parametrize(
    "name",
    [
        "missing.txt",
        "..",
        ".",
        "",
        "/",
        "sub",
        "../secret.txt",
        "..%2Fsecret.txt",
        "..%2F..%2F..%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        "%2F%2Fetc%2Fpasswd",
        "sub%2F..%2F..%2Fsecret.txt",
        "..%2Froot-beside%2Fx.txt",
        "..%5Csecret.txt",
        "%252e%252e%252fsecret.txt",
        "outside",
        "outside-dir%2Fsecret.txt",
        "loop",
        "pipe",
        "data.bin%00",
        "data.bin%00.html",
        "%00",
        "data.bin%2Fx",
        "x" * 5_000,
        "x%2F" * 3_000,
        "data.bin%0D%0A",
        "..hidden",
        ".hidden%2Fx.txt",
        "sub%2F.hidden",
        "sub%2F..%2F..hidden",
        "...%2Fx",
        "sub%2F.%2Finner.txt",
        ".%2Fsub%2Finner.txt",
        "sub%2F..%2Fpage.html",
        "sub%2F..%2Fsub%2Finner.txt",
        "sub%2F%2Finner.txt",
        "%2F%2Fsub%2Finner.txt",
        "%2F.%2Fsub%2Finner.txt",
        "page.html%2F",
        "page.html%2F.",
        "sub%2Finner.txt%2F%2F",
        "sub%2F",
    ],
    ids=lambda name: name[:30] or "empty",
)
async def test_a_path_that_names_no_file_below_the_root_is_a_404(fetch: Fetch, app: App, name: str) -> None:
    for target in (f"/files/{name}", f"/files?name={name}"):
        response = await fetch(app, target)
        assert (response.status, response.text) == (404, "Not Found")


async def status_of(fetch: Fetch, *args: Any, **options: Any) -> int:
    """Return the status of a response from Response.file() with these arguments."""

    async def handler(ctx: Context) -> Response:
        return Response.file(*args, **options)

    return (await fetch(App({"/": handler}))).status


async def test_a_root_that_is_missing_has_no_files(fetch: Fetch, tmp_path: Path) -> None:
    assert await status_of(fetch, "x", root=tmp_path / "missing") == 404


async def test_a_root_that_is_missing_is_named_once_with_the_line(
    fetch: Fetch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> Response:
        return Response.file("a.txt", root=tmp_path / ctx.path[1:])

    for target in ("/pubic", "/pubic", "/uplaods", "/"):
        assert (await fetch(App({"/*": handler}), target=target)).status == 404
    line = handler.__code__.co_firstlineno + 1
    assert [record.getMessage() for record in caplog.records] == [
        f"Response.file(root={str(root)!r}): there is no folder {str(root)!r}, so every path is 404 (logged once) "
        f"(tests/test_file.py, line {line}, in handler)"
        for root in (tmp_path / "pubic", tmp_path / "uplaods")
    ]


async def test_a_root_may_be_a_link_or_relative(fetch: Fetch, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    for base in ("link", "root", "./link/../root"):
        assert await status_of(fetch, "sub/inner.txt", root=base) == 200
        assert await status_of(fetch, "../secret.txt", root=base) == 404


async def test_without_a_root_a_path_is_used_unchanged(fetch: Fetch, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for path in ("../secret.txt", root / "outside", root.parent / "secret.txt", ".hidden/x.txt"):
        assert await status_of(fetch, path) == 200
    for path in ("missing", root, "pipe", "a\x00b", "./" * 2_100 + "page.html"):
        assert await status_of(fetch, path) == 404


async def test_a_path_longer_than_4095_bytes_is_not_looked_up(fetch: Fetch, root: Path) -> None:
    name = "d" * 255
    folder = os.open(root, os.O_RDONLY)
    for _ in range(15):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    path = "/".join([name] * 16)
    assert len(path) == 4095
    assert await status_of(fetch, path, root=root) == 200
    assert await status_of(fetch, "/" + path, root=root) == 404


async def test_a_guard_on_a_folder_sees_every_spelling_of_a_path_below_it(fetch: Fetch, root: Path) -> None:
    async def refuse(ctx: Context) -> None:
        raise HTTPError(403)

    async def below(ctx: Context) -> Response:
        return Response.file(f"{ctx.params['folder']}/{ctx.params['name']}", root=root)

    async def deep(ctx: Context) -> Response:
        return Response.file("/".join(ctx.params.values()), root=root)

    app = App({"/static": {"/sub/*": refuse, "/:folder/:name": below, "/:a/:b/:c": deep, "/:a/:b/:c/:d": deep}})
    assert (await fetch(app, "/static/sub/inner.txt")).status == 403
    for target in ("/static/./sub/inner.txt", "/static/x/../sub/inner.txt", "/static/inside/..%2Fsub/inner.txt"):
        assert (await fetch(app, target)).status == 404


@pytest.mark.parametrize("strict", [False, True])
async def test_a_folder_that_a_catch_all_serves_keeps_its_guard_and_its_root(fetch: Fetch, root: Path, strict: bool) -> None:
    async def refuse(ctx: Context) -> None:
        raise HTTPError(403)

    async def show(ctx: Context) -> Response:
        return Response.file(ctx.params["path"], root=root)

    app = App(define_routes({"/static": {"/sub/*": refuse, "/:path*": {"GET": show}}}, strict=strict))
    (root / "open").mkdir()
    (root / "open" / "a b.txt").write_text("open")
    assert (await fetch(app, "/static/open/a%20b.txt")).text == "open"
    assert (await fetch(app, "//static//open//a%20b.txt")).text == "open"
    assert (await fetch(app, "/static/open/a%20b.txt/")).status == (404 if strict else 200)
    for target in ("/static/sub/inner.txt", "/static//sub/inner.txt", "/static/s%75b/inner.txt", "/static/sub", "/static/sub/"):
        assert (await fetch(app, target)).status == 403
    for path in (
        "sub%2Finner.txt",
        "./sub/inner.txt",
        "x/../sub/inner.txt",
        "inside/..%2Fsub/inner.txt",
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2Fsecret.txt",
        "%2Fetc/passwd",
        "/etc/passwd",
        "a.txt%00",
        "",
    ):
        assert (await fetch(app, f"/static/{path}")).status == 404, path


async def test_a_backslash_is_a_separator_only_on_systems_where_it_is_one(fetch: Fetch, root: Path) -> None:
    (root / "a\\..\\b").write_text("odd")
    assert await status_of(fetch, "a\\..\\b", root=root, hidden=True) == (404 if os.sep == "\\" else 200)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE], ids=errno.errorcode.get)
def test_an_error_of_the_system_does_not_mean_that_a_file_is_absent(code: int) -> None:
    assert not _file.is_absent(OSError(code, os.strerror(code)))
    assert _file.is_absent(OSError(errno.ENOENT, "none"))
    assert _file.is_absent(ValueError("embedded null byte"))


async def test_hidden_files_are_sent_if_hidden_is_true(fetch: Fetch, root: Path) -> None:
    for path in ("..hidden", ".hidden/x.txt", "sub/.hidden"):
        assert await status_of(fetch, path, root=root, hidden=True) == 200
    assert await status_of(fetch, "../secret.txt", root=root, hidden=True) == 404
    # The application chooses the root, and may choose one that is a link.
    assert await status_of(fetch, "x.txt", root=root / ".hidden") == 200
    (root / "shown").symlink_to(root / ".hidden")
    assert await status_of(fetch, "shown/x.txt", root=root) == 200


async def test_a_file_that_is_removed_before_it_is_opened_is_a_404(fetch: Fetch, root: Path) -> None:
    async def handler(ctx: Context) -> Response:
        response = Response.file("page.html", root=root)
        (root / "page.html").unlink()
        return response

    assert (await fetch(App({"/": handler}))).status == 404


def changing(root: Path, change: Callable[[Path], None]) -> App:
    """Return an App with a hook that makes a *change* to data.bin after it is opened."""

    async def handler(ctx: Context) -> Response:
        return Response.file("data.bin", root=root)

    def on_response(ctx: Context, response: Response) -> None:
        change(root / "data.bin")

    return App({"/": handler}, integrations=[define_integration(name="change", on_response=on_response)])


async def test_a_file_that_became_shorter_breaks_the_response_off_and_is_logged(
    fetch: Fetch, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    response = await fetch(changing(root, lambda path: os.truncate(path, 100)))
    # Without the last message, the server notices that the response is incomplete.
    assert response.messages[-1]["more_body"] is True
    [record] = caplog.records
    assert "broke off: ResultError: " in record.getMessage()
    assert "became shorter" in record.getMessage()
    assert record.exc_info is None


async def test_a_read_error_of_an_open_file_is_a_result_error(root: Path) -> None:
    with FileIO(root / "data.bin", "a") as unreadable:
        file = _file.File(unreadable, SIZE, MODIFIED, '"x"', "text/plain")
        with pytest.raises(ResultError, match="can't be read"):
            await anext(_file.read(file, 0, SIZE))


async def test_a_file_that_became_longer_is_sent_with_the_announced_length(fetch: Fetch, root: Path) -> None:
    response = await fetch(changing(root, lambda path: os.truncate(path, len(CONTENT) + 10)))
    assert response.body == CONTENT


async def test_the_file_that_was_opened_is_the_one_that_is_sent(fetch: Fetch, root: Path) -> None:
    def replace(path: Path) -> None:
        (root / "new").write_bytes(b"new")
        os.replace(root / "new", path)

    response = await fetch(changing(root, replace))
    assert (response.status, response.body, response.headers["last-modified"]) == (200, CONTENT, SAME)


# Content types and names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.HTML", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
        ("a", "application/octet-stream"),
        ("a.unknown-kind", "application/octet-stream"),
        ("a.tar.gz", "application/octet-stream"),
        ("a.html.gz", "application/octet-stream"),
        (".html", "application/octet-stream"),
        ("data:,.png", "image/png"),
    ],
)
async def test_the_content_type_is_guessed_only_from_the_name(fetch: Fetch, root: Path, name: str, kind: str) -> None:
    (root / name).write_text("<script>")

    async def hidden(ctx: Context) -> Response:
        return Response.file(ctx.query["name"], root=root, hidden=True)

    assert (await fetch(App({"/": hidden}), f"/?name={name}")).headers["content-type"] == kind


async def test_a_file_may_have_its_own_content_type_headers_and_status(fetch: Fetch, root: Path) -> None:
    async def handler(ctx: Context) -> Response:
        return Response.file(root / "page.html", 404, {"ETag": '"mine"', "cache-control": "no-cache"}, content_type="text/x")

    response = await fetch(App({"/": handler}), headers={"range": "bytes=0-1", "if-none-match": '"mine"'})
    assert (response.status, response.text) == (404, "<p>caf\xe9")
    assert response.headers.getall("etag") == ['"mine"']
    assert response.headers.getall("content-type") == ["text/x"]
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt"),
        ("a b.txt", "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
        ("caf\xe9.txt", "attachment; filename=\"caf_.txt\"; filename*=UTF-8''caf%C3%A9.txt"),
        ('a"b\\c%d.txt', "attachment; filename=\"a_b_c_d.txt\"; filename*=UTF-8''a%22b%5Cc%25d.txt"),
        ("a\r\nSet-Cookie: x=y", "attachment; filename=\"a__Set-Cookie: x=y\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x%3Dy"),
        ("a\x00;b/c", "attachment; filename=\"a_;b/c\"; filename*=UTF-8''a%00%3Bb%2Fc"),
    ],
    ids=["plain", "space", "beyond ascii", "quotes", "line break", "nul and more"],
)
def test_a_download_is_named_safely(root: Path, name: str, expected: str) -> None:
    assert Response.file(root / "page.html", download=name).headers["content-disposition"] == expected


def test_without_a_download_name_there_is_no_content_disposition(root: Path) -> None:
    assert "content-disposition" not in Response.file(root / "page.html").headers


# Ranges

SIZE = len(CONTENT)


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-70000", 100, 70_000),
        ("bytes=5-", 5, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        (f"bytes=10-{SIZE}", 10, SIZE - 1),
        ("bytes=10-9999999999999999999", 10, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-100", SIZE - 100, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        ("Bytes=1-2", 1, 2),
        ("bytes= 1-2 ", 1, 2),
    ],
)
async def test_a_range_of_a_file_is_sent(fetch: Fetch, app: App, value: str, first: int, last: int) -> None:
    response = await fetch(app, "/files/data.bin", headers={"range": value})
    assert partial(response) == (206, f"bytes {first}-{last}/{SIZE}", last - first + 1)
    assert response.body == CONTENT[first : last + 1]
    assert "etag" in response.headers


@pytest.mark.parametrize("value", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=9999999999999999999-"])
async def test_a_range_beyond_the_end_gets_416(fetch: Fetch, app: App, value: str) -> None:
    assert partial(await fetch(app, "/files/data.bin", headers={"range": value})) == (416, f"bytes */{SIZE}", 0)


async def test_an_empty_file_has_no_range(fetch: Fetch, app: App) -> None:
    assert (await fetch(app, "/files/empty.txt", headers={"range": "bytes=0-"})).status == 416


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=1-2,4-5",
        "bytes=--1",
        "bytes=1-2-3",
        "items=0-5",
        "0-5",
        f"bytes={'9' * 5_000}-",
        "bytes=\xb2-",
        "bytes=1.5-2",
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_an_invalid_range_or_several_ranges_send_the_whole_file(fetch: Fetch, app: App, value: str) -> None:
    assert partial(await fetch(app, "/files/data.bin", headers={"range": value})) == (200, None, SIZE)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
async def test_only_get_has_ranges(fetch: Fetch, app: App, method: str) -> None:
    response = await fetch(app, "/files/data.bin", method, headers={"range": "bytes=0-9"})
    assert (response.status, response.headers["content-length"]) == (200, str(SIZE))


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("the etag", 206),
        (SAME, 206),
        ('"other"', 200),
        ("W/the etag", 200),
        (BEFORE, 200),
        (AFTER, 200),
        ("", 200),
        ("nonsense", 200),
        ("*", 200),
    ],
)
async def test_a_range_of_another_version_sends_the_whole_file(fetch: Fetch, app: App, condition: str, status: int) -> None:
    condition = condition.replace("the etag", await tag(fetch, app))
    response = await fetch(app, "/files/data.bin", headers={"range": "bytes=0-9", "if-range": condition})
    assert response.status == status


async def test_a_weak_etag_does_not_match_if_range(fetch: Fetch, root: Path) -> None:
    async def handler(ctx: Context) -> Response:
        return Response.file(root / "data.bin", headers={"etag": 'W/"x"'})

    app = App({"/": handler})
    for condition in ('W/"x"', '"x"'):
        assert (await fetch(app, headers={"range": "bytes=0-9", "if-range": condition})).status == 200
    assert (await fetch(app, headers={"if-match": 'W/"x"'})).status == 412
    assert (await fetch(app, headers={"if-none-match": '"x"'})).status == 304


# Conditions


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"if-none-match": "TAG"}, 304, id="same tag"),
        pytest.param({"if-none-match": "W/TAG"}, 304, id="weakly the same tag"),
        pytest.param({"if-none-match": '"a", TAG , "b"'}, 304, id="tag in a list"),
        pytest.param({"if-none-match": 'W/"a",W/TAG'}, 304, id="tag in a weak list"),
        pytest.param({"if-none-match": '"a,b", "c"'}, 200, id="other tags"),
        pytest.param({"if-none-match": "*"}, 304, id="any tag"),
        pytest.param({"if-none-match": " * "}, 304, id="any tag in blanks"),
        pytest.param({"if-none-match": ""}, 200, id="no tag"),
        pytest.param({"if-none-match": "nonsense"}, 200, id="a tag without quotes"),
        pytest.param({"if-modified-since": SAME}, 304, id="not modified"),
        pytest.param({"if-modified-since": AFTER}, 304, id="not modified since later"),
        pytest.param({"if-modified-since": BEFORE}, 200, id="modified"),
        pytest.param({"if-modified-since": "yesterday"}, 200, id="modified since no date"),
        pytest.param({"if-modified-since": "Mon, 99 Foo 0000 99:99:99 GMT"}, 200, id="modified since an impossible date"),
        pytest.param({"if-modified-since": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, 200, id="modified since an endless year"),
        pytest.param({"if-match": "TAG"}, 200, id="match"),
        pytest.param({"if-match": '"a", TAG'}, 200, id="match in a list"),
        pytest.param({"if-match": 'W/"a", TAG'}, 200, id="match after a weak tag"),
        pytest.param({"if-match": "*"}, 200, id="match any"),
        pytest.param({"if-match": '"other"'}, 412, id="no match"),
        pytest.param({"if-match": "W/TAG"}, 412, id="weak match"),
        pytest.param({"if-match": ""}, 412, id="match nothing"),
        pytest.param({"if-unmodified-since": SAME}, 200, id="unmodified"),
        pytest.param({"if-unmodified-since": AFTER}, 200, id="unmodified since later"),
        pytest.param({"if-unmodified-since": BEFORE}, 412, id="not unmodified"),
        pytest.param({"if-unmodified-since": "yesterday"}, 200, id="unmodified since no date"),
        # RFC 9110, section 13.2.2: the first condition decides, and a tag has precedence over a date.
        pytest.param({"if-match": "TAG", "if-unmodified-since": BEFORE}, 200, id="match before unmodified"),
        pytest.param({"if-match": '"other"', "if-unmodified-since": AFTER}, 412, id="no match before unmodified"),
        pytest.param({"if-none-match": '"other"', "if-modified-since": AFTER}, 200, id="none-match before modified"),
        pytest.param({"if-none-match": "TAG", "if-modified-since": BEFORE}, 304, id="same tag before modified"),
        pytest.param({"if-match": '"other"', "if-none-match": "TAG"}, 412, id="no match before the same tag"),
        pytest.param({"if-match": "TAG", "if-none-match": "TAG"}, 304, id="match and the same tag"),
        pytest.param({"if-unmodified-since": BEFORE, "if-none-match": "TAG"}, 412, id="unmodified before the same tag"),
        pytest.param({"if-unmodified-since": SAME, "if-modified-since": SAME}, 304, id="both dates"),
        pytest.param({"if-none-match": "TAG", "range": "bytes=0-9"}, 304, id="the same tag before a range"),
        pytest.param({"if-match": '"other"', "range": "bytes=9999999-"}, 412, id="no match before a range"),
    ],
)
async def test_conditions_decide_in_the_order_of_rfc_9110(
    fetch: Fetch, app: App, headers: dict[str, str], status: int, method: str
) -> None:
    etag = await tag(fetch, app)
    response = await fetch(
        app, "/files/data.bin", method, headers={name: value.replace("TAG", etag) for name, value in headers.items()}
    )
    assert response.status == status
    assert response.headers["etag"] == etag
    if status != 200:
        assert response.body == b""
        assert response.headers.get("content-length") == (None if status == 304 else "0")


async def test_tags_of_several_fields_are_one_list(fetch: Fetch, app: App) -> None:
    etag = (await tag(fetch, app)).encode()
    for name, status in ((b"if-none-match", 304), (b"if-match", 200)):
        response = await fetch(app, "/files/data.bin", headers=[(name, b'"a"'), (name, etag)])
        assert response.status == status


async def test_a_range_applies_if_its_condition_matches(fetch: Fetch, app: App) -> None:
    headers = {"if-match": await tag(fetch, app), "range": "bytes=1-3", "if-none-match": '"other"'}
    assert (await fetch(app, "/files/data.bin", headers=headers)).body == CONTENT[1:4]


async def test_a_changed_content_has_a_changed_etag(fetch: Fetch, app: App, root: Path) -> None:
    seen = {await tag(fetch, app)}
    os.utime(root / "data.bin", ns=(MODIFIED * 10**9, MODIFIED * 10**9 + 1))
    seen.add(await tag(fetch, app))
    (root / "data.bin").write_bytes(b"x")
    os.utime(root / "data.bin", (MODIFIED, MODIFIED))
    seen.add(await tag(fetch, app))
    assert len(seen) == 3


async def test_a_file_can_have_cookies(fetch: Fetch, root: Path) -> None:
    async def handler(ctx: Context) -> Response:
        ctx.cookies.set("a", "1")
        return Response.file(root / "page.html")

    response = await fetch(App({"/": handler}))
    assert (response.text, response.headers["set-cookie"][:4]) == ("<p>caf\xe9", "a=1;")


async def test_a_file_response_that_a_handler_keeps_is_opened_for_each_request(fetch: Fetch, root: Path) -> None:
    kept = Response.file(root / "data.bin")

    async def handler(ctx: Context) -> Response:
        return kept

    app = App({"/": handler})
    before: Any = list(kept.headers.raw)
    for first in (0, 5):
        response = await fetch(app, headers={"range": f"bytes={first}-9"})
        assert response.body == CONTENT[first:10]
        assert len(response.headers.getall("content-range")) == 1
    assert kept.headers.raw == before


async def test_a_file_response_that_a_hook_keeps_is_opened_for_each_request(fetch: Fetch, root: Path) -> None:
    kept: list[Response] = []

    async def handler(ctx: Context) -> Response:
        return Response.file(root / "data.bin")

    def keep(ctx: Context, response: Response) -> Response:
        kept.append(response)
        return kept[0]

    app = App({"/": handler}, integrations=[define_integration(name="keep", on_response=keep)])
    for received in [await fetch(app), *await asyncio.gather(*(fetch(app) for _ in range(5)))]:
        assert received.body == CONTENT


def test_a_path_of_none_raises_where_the_response_is_made() -> None:
    path: Any = None
    with pytest.raises(TypeError, match="takes a path, not None"):
        Response.file(path)


async def test_a_client_that_leaves_during_a_file_leaves_no_trace(fetch: Fetch, app: App, caplog: pytest.LogCaptureFixture) -> None:
    response = await fetch(app, "/files/data.bin", disconnects=True)
    assert response.status == 200
    assert caplog.records == []


# Over real sockets

SERVED = """
import os, resource, threading
from pathlib import Path
import gaman
from gaman import Context, HTTPError, Response, define_integration
from gaman.session import session

site = Path(__file__).with_name("site")
released = threading.Event()

class Waiting:
    def __fspath__(self):
        return str(site) if released.wait(10) else "never released"

async def file(ctx: Context):
    if ctx.query.get("session"):
        await ctx.session.set("user", "Angga")
    headers = {"x-content-type-options": ctx.query["sniff"]} if "sniff" in ctx.query else None
    return Response.file(ctx.query["name"], headers=headers, root=site, hidden="hidden" in ctx.query)

async def waiting(ctx: Context):
    return Response.file("page.html", root=Waiting())

async def release(ctx: Context):
    released.set()
    return "released"

async def removed(ctx: Context):
    await ctx.session.set("user", "Angga")
    (site / "passing.txt").write_text("passing")
    response = Response.file("passing.txt", root=site, headers={"vary": "accept", "etag": '"x"'})
    (site / "passing.txt").unlink()
    return response

async def limited(ctx: Context):
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    ctx.locals["limit"] = soft, hard
    return Response.file("page.html", root=site)

async def mine(ctx: Context):
    headers = {"cache-control": ctx.query["cache"], "vary": "accept-language"}
    return Response.file("missing", root=site, headers=headers)

async def renamed(ctx: Context):
    name = os.fsdecode(b"caf\\xe9.txt")
    (site / name).write_text("a name in ISO-8859-1")
    return Response.file(name, root=site, download=name)

async def moved(ctx: Context):
    return Response.redirect("/files/" + os.fsdecode(b"caf\\xe9.txt"))

async def length(ctx: Context):
    return Response.file("page.html", root=site, headers={"content-length": "3"})

async def fds(ctx: Context):
    return {"fds": len(os.listdir("/dev/fd"))}

def on_response(ctx: Context, response: Response):
    if "limit" in ctx.locals:
        resource.setrlimit(resource.RLIMIT_NOFILE, ctx.locals["limit"])
    response.headers["x-seen"] = f"{response.status} {response.headers.get('etag')}"
    match ctx.query.get("hook"):
        case "fail":
            raise RuntimeError("planted")
        case "replace":
            return Response("replaced")
        case "another":
            return Response.file("other.txt", root=site)
        case "missing":
            return Response.file("missing", root=site)

def on_error(ctx: Context, error: Exception):
    if ctx.query.get("page") == "own" and isinstance(error, HTTPError):
        return Response.file("other.txt", error.status, root=site)
    if ctx.query.get("page") == "missing":
        return Response.file("missing", error.status, root=site)

routes = {
    "/file": file, "/waiting": waiting, "/release": release, "/removed": removed, "/limited": limited, "/mine": mine,
    "/renamed": renamed, "/moved": moved, "/length": length, "/fds": fds,
}
integrations = [
    session("a secret of the tests, long enough", {"type": "memory"}, secure=False),
    define_integration(name="hooks", on_response=on_response, on_error=on_error),
]
"""


class Served:
    """A server that runs SERVED, and the folder that it serves."""

    def __init__(self, program: Program, site: Path) -> None:
        self._program = program
        self.port = program.port
        self.site = site

    def fds(self) -> int:
        return int(json.loads(get(self.port, "/fds", "Connection: close").body)["fds"])

    def log(self) -> str:
        return self._program.stderr


@contextmanager
def served_by(server: str, folder: Path) -> Generator[Served]:
    site = folder / "site"
    site.mkdir()
    (site / "page.html").write_text("<p>page")
    (site / "other.txt").write_text("other")
    (site / ".env").write_text("a password")
    (site / "dir").mkdir()
    (site / "big").write_bytes(bytes(1 << 22))
    os.mkfifo(site / "pipe")
    (site / "dangling").symlink_to(site / "nothing")
    os.utime(site / "page.html", (MODIFIED, MODIFIED))
    # A time zone other than UTC, which must not affect how dates are parsed.
    with running_script(SERVED + SERVES[server], folder, env={"TZ": "America/New_York"}) as program:
        yield Served(program, site)
        program.stop()
        assert "ResourceWarning" not in program.stderr


@pytest.fixture(scope="module", params=SERVES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with served_by(request.param, tmp_path_factory.mktemp("served")) as served:
        yield served


def test_opening_a_file_does_not_block_other_requests(served: Served) -> None:
    with Connection(served.port) as waiting:
        waiting.send(request("/waiting"))
        assert get(served.port, "/release").body == b"released"
        assert waiting.read().body == b"<p>page"


def test_a_long_path_is_not_looked_up(served: Served) -> None:
    assert get(served.port, f"/file?name={'./' * 30_000}page.html").status == 404
    assert get(served.port, f"/file?name={'a/' * 30_000}").status == 404


@pytest.mark.parametrize("name", [".env", "/.env", "%2Eenv"])
def test_a_hidden_file_is_sent_only_if_hidden_is_true(served: Served, name: str) -> None:
    assert get(served.port, f"/file?name={name}").status == 404
    assert get(served.port, f"/file?hidden=1&name={name}").body == b"a password"


@pytest.mark.parametrize("name", ["dir/../.env", "./.env", "dir//../.env", "//.env", ".env/"])
def test_a_hidden_file_has_no_other_path(served: Served, name: str) -> None:
    for query in (f"name={name}", f"hidden=1&name={name}"):
        assert get(served.port, f"/file?{query}").status == 404


def test_a_file_is_sent_with_nosniff(served: Served) -> None:
    assert get(served.port, "/file?name=page.html").headers["x-content-type-options"] == "nosniff"
    assert get(served.port, "/file?name=page.html&sniff=other").headers["x-content-type-options"] == "other"


ASKS = [("GET", ""), ("HEAD", ""), ("GET", "If-None-Match: *"), ("GET", "If-Modified-Since: " + AFTER), ("GET", "Range: bytes=0-1")]


@pytest.mark.parametrize(("method", "field"), ASKS)
@pytest.mark.parametrize(
    "target",
    ["/removed", *(f"/file?name={name}" for name in ("missing", "dir", "pipe", "dangling", "page.html/x", "%00"))],
)
def test_a_file_that_cannot_be_opened_is_a_404_for_every_method_and_condition(
    served: Served, target: str, method: str, field: str
) -> None:
    with Connection(served.port) as connection:
        response = connection.fetch(request(target, *([field] if field else []), method=method))
        assert response.status == 404
        # Hooks see the status that is sent.
        assert response.headers["x-seen"] == "404 None"


@pytest.mark.parametrize(("method", "field"), ASKS)
def test_a_file_without_a_free_descriptor_is_a_503_and_its_reason_is_logged(served: Served, method: str, field: str) -> None:
    before = served.log().count("Too many open files")
    with Connection(served.port) as connection:
        response = connection.fetch(request("/limited", *([field] if field else []), method=method))
        assert (response.status, response.headers["x-seen"]) == (503, "503 None")
    until(lambda: served.log().count("Too many open files") > before, "the line that says why")
    [*_, line] = [line for line in served.log().splitlines() if "Too many open files" in line]
    assert f"{method} '/limited' answered 503: 503 Service Unavailable: OSError(" in line


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", ["/removed", "/file?session=1&name=missing"])
def test_a_404_in_place_of_a_file_keeps_the_session(served: Served, target: str, method: str) -> None:
    with Connection(served.port) as connection:
        response = connection.fetch(request(target, method=method))
    assert response.status == 404
    assert response.headers["set-cookie"].startswith("gaman=")
    assert "cookie" in response.headers["vary"].lower()
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("cache", "kept"),
    [("no-store", "no-store"), ("Private, max-age=5", "Private, max-age=5"), ("public, max-age=31536000, immutable", None)],
)
def test_a_404_in_place_of_a_file_keeps_the_limits_on_caches_and_drops_the_lifetime(
    served: Served, cache: str, kept: str | None
) -> None:
    response = get(served.port, f"/mine?cache={cache.replace(' ', '+')}")
    assert (response.status, response.headers.get("cache-control")) == (404, kept)
    assert response.headers["vary"] == "accept-language"


def test_an_on_error_hook_can_show_a_page_in_place_of_a_file(served: Served) -> None:
    response = get(served.port, "/file?name=missing&page=own")
    assert (response.status, response.body) == (404, b"other")
    response = get(served.port, "/file?name=missing&page=missing")
    assert (response.status, response.body) == (404, b"Not Found")
    until(lambda: "the on_error hook on_error failed on GET '/file'" in served.log(), "the line that says that the hook failed")


def test_hooks_see_the_fields_that_describe_a_file(served: Served) -> None:
    response = get(served.port, "/file?name=page.html")
    assert response.headers["x-seen"] == f"200 {response.headers['etag']}"


def test_a_hook_may_return_a_file(served: Served) -> None:
    assert get(served.port, "/file?name=page.html&hook=another").body == b"other"
    assert get(served.port, "/file?name=page.html&hook=missing").status == 404


def test_every_file_that_was_opened_is_closed(served: Served) -> None:
    get(served.port, "/file?name=page.html")
    before = served.fds()
    etag = get(served.port, "/file?name=big").headers["etag"]
    for method, target, field in [
        ("HEAD", "/file?name=big", ""),
        ("GET", "/file?name=big", f"If-None-Match: {etag}"),
        ("GET", "/file?name=big", 'If-Match: "other"'),
        ("GET", "/file?name=big", "Range: bytes=99999999-"),
        *(("GET", f"/file?name=page.html&hook={hook}", "") for hook in ("fail", "replace", "another", "missing")),
    ]:
        with Connection(served.port) as connection:
            connection.fetch(request(target, *([field] if field else []), "Connection: close", method=method))
    for _ in range(5):
        with Connection(served.port) as connection:
            connection.send(request("/file?name=big"))
            connection.read_until(b"\r\n\r\n")
            connection.reset()
    until(lambda: served.fds() <= before, f"no more open files than before: {before}")


def test_a_file_has_one_length(served: Served) -> None:
    with Connection(served.port) as connection:
        connection.send(request("/length", "Connection: close"))
        head, _, body = connection.read_rest().partition(b"\r\n\r\n")
    assert head.lower().count(b"content-length:") == 1
    assert b"content-length: 7" in head
    assert body == b"<p>page"


@pytest.mark.parametrize("modified", [0, 1])
def test_the_date_of_a_reproducible_build_is_not_sent(served: Served, modified: int) -> None:
    built = served.site / "built.txt"
    tags: set[str] = set()
    for content in ("one", "two"):
        built.write_text(content)
        os.utime(built, (modified, modified))
        response = get(served.port, "/file?name=built.txt")
        assert "last-modified" not in response.headers
        tags.add(response.headers["etag"])
        for field in ("If-Modified-Since: " + AFTER, "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"):
            assert get(served.port, "/file?name=built.txt", field).body == content.encode()
        assert get(served.port, "/file?name=built.txt", "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT").status == 200
        assert get(served.port, "/file?name=built.txt", "If-Range: ", "Range: bytes=0-0").status == 200
    assert len(tags) == 2


def test_last_modified_is_never_later_than_the_date_of_the_response(served: Served, request: pytest.FixtureRequest) -> None:
    tomorrow = served.site / "tomorrow.txt"
    tomorrow.write_text("x")
    for ahead in (0.0, 1.0, 86_400.0, 1e12):
        if ahead:
            then = tomorrow.stat().st_mtime + ahead
            os.utime(tomorrow, (then, then))
        response = get(served.port, "/file?name=tomorrow.txt")
        # Under load, uvicorn's own Date may be seconds old.
        date = datetime.now(UTC) if "uvicorn" in request.node.name else parsedate_to_datetime(response.headers["date"])
        assert parsedate_to_datetime(response.headers["last-modified"]) <= date


# 1,700,000,000 is Tuesday, 14 November 2023, 22:13:20.
@pytest.mark.parametrize(
    ("date", "status"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 304),
        ("Tue, 14 Nov 2023 22:13:19 GMT", 200),
        ("Tuesday, 14-Nov-23 22:13:20 GMT", 304),
        ("Tuesday, 14-Nov-23 22:13:19 GMT", 200),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 200),
        ("Friday, 01-Jan-99 00:00:00 GMT", 200),
        ("Tue Nov 14 22:13:20 2023", 304),
        ("Tue Nov 14 22:13:19 2023", 200),
        ("Wed Jan  3 00:00:00 2024", 304),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 200),
        ("Sun, 31 Dec 2023 23:59:60 GMT", 304),
        ("Fri, 31 Dec 9999 23:59:60 GMT", 304),
        # Each has a later time, but none is an HTTP-date.
        ("Tue, 14 Nov 2024 22:13:20 +0000", 200),
        ("Tue, 14 Nov 2024 22:13:20", 200),
        ("14 Nov 2024 22:13:20 GMT", 200),
        ("Tue, 14 Nov 24 22:13:20 GMT", 200),
        ("Tue, 14 Nov 2024 22:13 GMT", 200),
        ("Tue, 1 Nov 2024 22:13:20 GMT", 200),
        ("Tue, 31 Nov 2024 22:13:20 GMT", 200),
        ("Tue, 14 Nov 2024 24:13:20 GMT", 200),
        ("Tue, 14 Nov 2024 22:13:61 GMT", 200),
        ("tue, 14 nov 2024 22:13:20 gmt", 200),
        ("Tue, 14 Nov 2024 22:13:20 EST", 200),
        ("Tue, 14 Nov 2024 22:13:20 GMT, Tue, 14 Nov 2024 22:13:20 GMT", 200),
        ("Tuesday, 14-Nov-2024 22:13:20 GMT", 200),
        ("Tue Nov 14 22:13:20 2024 GMT", 200),
        ("2024-11-14T22:13:20Z", 200),
        ("1800000000", 200),
    ],
)
def test_a_date_is_valid_if_it_has_a_format_of_rfc_9110_and_is_in_utc(served: Served, date: str, status: int) -> None:
    assert get(served.port, "/file?name=page.html", f"If-Modified-Since: {date}").status == status


def test_two_dates_are_ignored(served: Served) -> None:
    field = "If-Modified-Since: " + AFTER
    assert get(served.port, "/file?name=page.html", field).status == 304
    assert get(served.port, "/file?name=page.html", field, field).status == 200


def test_a_304_has_no_fields_about_a_body(served: Served) -> None:
    response = get(served.port, "/file?name=page.html", "If-None-Match: *")
    assert response.status == 304
    assert not {"content-type", "content-length", "transfer-encoding"} & response.headers.keys()
    assert "etag" in response.headers


def test_a_file_name_that_is_not_utf_8_works_in_downloads_and_redirects(served: Served) -> None:
    response = get(served.port, "/renamed")
    assert (response.status, response.body) == (200, b"a name in ISO-8859-1")
    assert response.headers["content-disposition"] == "attachment; filename=\"caf_.txt\"; filename*=UTF-8''caf%EF%BF%BD.txt"
    assert get(served.port, "/moved").headers["location"] == "/files/caf%E9.txt"


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_that_is_swapped_in_during_a_request_is_not_followed(served: Served, swapped: str) -> None:
    outside = served.site.parent / f"outside-{swapped}"
    inside = served.site / f"inside-{swapped}"
    for folder, content in ((outside, "secret"), (inside, "public")):
        folder.mkdir()
        (folder / "page").write_text(content)
    name, kept, link = (
        (inside / "page", inside / "kept", outside / "page") if swapped == "file" else (inside, served.site / "kept", outside)
    )
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            name.rename(kept)
            name.symlink_to(link)
            name.unlink()
            kept.rename(name)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen: set[bytes] = set()
    try:
        with Connection(served.port) as connection:
            for _ in range(2_000):
                response = connection.fetch(request(f"/file?name=inside-{swapped}/page"))
                assert response.status in (200, 404)
                seen.add(response.body)
    finally:
        over.set()
        swapping.join()
    assert b"secret" not in seen
    assert b"public" in seen
