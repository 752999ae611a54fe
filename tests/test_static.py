from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gaman import App, ConfigError, Context, HTTPError, Response
from gaman.session import session
from gaman.static import HASHED, static
from gaman_static._encodings import IDENTITY, choose
from gaman_static._folder import Folder
from tests.serving import SERVES, Connection, request, running_script

if TYPE_CHECKING:
    from tests.asgi import Exchange, Fetch

pytestmark = pytest.mark.anyio

SCRIPT = "console.log('a script');\n" * 100
GZIPPED = gzip.compress(SCRIPT.encode())
BROTLI = b"as short as brotli makes it"
IMMUTABLE = "public, max-age=31536000, immutable"
ALLOW = "GET, HEAD, OPTIONS"
PAGE = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a bundler writes it, beside a secret."""
    folder = tmp_path / "dist"
    for name, content in {
        "index.html": "<title>site</title>",
        "app.js": SCRIPT,
        "app.3f9a1c2b.js": SCRIPT,
        "notes": "no ending",
        "docs/index.html": "<title>docs</title>",
        "docs/a b/index.html": "<title>a b</title>",
        "empty/plain.txt": "text",
        ".env": "GAMAN_KEY=secret",
        ".git/config": "secret",
        "docs/.htaccess": "secret",
        ".well-known/security.txt": "Contact: mailto:a@example.com",
        ".well-known/.hidden": "secret",
        ".well-knownx": "secret",
        "docs/.well-known/x.txt": "secret",
        "a%2Fb.txt": "an escape in its name",
        "back\\slash.txt": "secret",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "app.js.gz").write_bytes(GZIPPED)
    (folder / "app.js.br").write_bytes(BROTLI)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "dist-beside").mkdir()
    (tmp_path / "dist-beside" / "x.txt").write_text("secret")
    (folder / "inside.txt").symlink_to("notes")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


async def make(folder: Path, path: str = "/", routes: dict[str, Any] | None = None, **options: Any) -> App:
    """Return a loaded App that serves *folder* at *path*."""
    app = App(routes or {}, integrations=[static(path, folder, **options)])
    await app.load()
    return app


async def hello(ctx: Context) -> str:
    return "hello"


def told(response: Exchange, *names: str) -> tuple[str | None, ...]:
    return tuple(response.headers.get(name) for name in names)


# Found or not


@pytest.mark.parametrize(
    ("target", "text", "kind"),
    [
        ("/app.js", SCRIPT, "text/javascript; charset=utf-8"),
        ("/", "<title>site</title>", "text/html; charset=utf-8"),
        ("/index.html", "<title>site</title>", "text/html; charset=utf-8"),
        ("/docs/", "<title>docs</title>", "text/html; charset=utf-8"),
        ("//docs//", "<title>docs</title>", "text/html; charset=utf-8"),
        ("/docs/a%20b/", "<title>a b</title>", "text/html; charset=utf-8"),
        ("/empty/plain.txt", "text", "text/plain; charset=utf-8"),
        ("/notes", "no ending", "application/octet-stream"),
        ("/inside.txt", "no ending", "text/plain; charset=utf-8"),
        ("/.well-known/security.txt", "Contact: mailto:a@example.com", "text/plain; charset=utf-8"),
        ("/a%252Fb.txt", "an escape in its name", "text/plain; charset=utf-8"),
    ],
)
async def test_a_file_below_the_folder_is_sent(fetch: Fetch, folder: Path, target: str, text: str, kind: str) -> None:
    app = await make(folder)
    response = await fetch(app, target)
    assert (response.status, response.text, response.headers["content-type"]) == (200, text, kind)
    assert told(response, "cache-control", "accept-ranges", "x-content-type-options") == ("no-cache", "bytes", "nosniff")
    assert response.headers["etag"].startswith('"')
    assert "last-modified" in response.headers
    head = await fetch(app, target, "HEAD")
    assert (head.status, head.body, dict(head.headers)) == (200, b"", dict(response.headers))


TRAVERSALS = [
    "/../secret.txt",
    "/..%2fsecret.txt",
    "/%2e%2e/secret.txt",
    "/%2e%2e%2fsecret.txt",
    "/..%5csecret.txt",
    "/docs/../../secret.txt",
    "/docs/..%2f..%2fsecret.txt",
    "/docs/../app.js",
    "/./app.js",
    "/docs%2findex.html",
    "/%2fetc/passwd",
    "//etc/passwd",
    "/../dist-beside/x.txt",
    "/..%c0%af..%c0%afsecret.txt",
    "/%252e%252e%252fsecret.txt",
    "/app.js%00",
    "/app.js%00.html",
    "/app.js/",
    "/app.js/x",
    "/app.js%0d%0a",
    "/back%5cslash.txt",
    "/outside.txt",
    "/outside/secret.txt",
    "/loop",
    "/pipe",
    "/pipe/",
    "/" + "x" * 5_000,
    "/" + "x/" * 3_000,
    "/.env",
    "/.git/config",
    "/.git/",
    "/docs/.htaccess",
    "/docs/.well-known/x.txt",
    "/.well-known/.hidden",
    "/.well-known/../app.js",
    "/.well-known",
    "/.well-knownx",
    "/empty/",
    "/empty",
    "/missing.txt",
    "/APP.JSX",
]


@pytest.mark.parametrize("options", [{}, {"fallback": "index.html"}], ids=["plain", "fallback"])
@pytest.mark.parametrize("target", TRAVERSALS, ids=lambda target: target[:40])
async def test_every_other_path_is_404_and_reveals_nothing(
    fetch: Fetch, folder: Path, target: str, options: dict[str, Any]
) -> None:
    response = await fetch(await make(folder, **options), target)
    # Octets that aren't UTF-8 are refused before any hook.
    assert response.status == (400 if "%c0" in target else 404)
    assert b"secret" not in response.body


@pytest.mark.parametrize("target", ["/a%00", "/%00/a", "/app.js%00"])
async def test_a_path_with_nul_is_404_also_with_a_fallback(fetch: Fetch, folder: Path, target: str) -> None:
    response = await fetch(await make(folder, fallback="index.html"), target, headers=PAGE)
    assert response.status == 404


@pytest.mark.parametrize("server", SERVES)
def test_a_raw_target_over_a_socket_leaves_no_folder(folder: Path, server: str) -> None:
    script = f"""
import gaman
from gaman.static import static
routes, integrations = {{}}, [static("/", {str(folder)!r})]
{SERVES[server]}"""
    with running_script(script, folder.parent) as program, Connection(program.port) as connection:
        assert connection.fetch(request("/app.js")).body == SCRIPT.encode()
        for target in (
            "/../secret.txt",
            "/docs/../../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "/.env",
            "/outside.txt",
        ):
            response = connection.fetch(request(target))
            assert (response.status, b"secret" in response.body) == (404, False), target
        ranged = connection.fetch(request("/app.js", "Range: bytes=2-5", "Accept-Encoding: br"))
        assert (ranged.status, ranged.body) == (206, BROTLI[2:6])
        assert connection.fetch(request("/docs", method="HEAD")).status == 302


async def test_only_paths_below_its_own_are_served(fetch: Fetch, folder: Path) -> None:
    app = await make(folder, "/assets/")
    statuses = {
        target: (await fetch(app, target)).status for target in ("/assets/app.js", "/assetsx/app.js", "/app.js", "/assets/")
    }
    assert statuses == {"/assets/app.js": 200, "/assetsx/app.js": 404, "/app.js": 404, "/assets/": 200}
    # RFC 8615 reserves the name only at the root of a site.
    assert (await fetch(app, "/assets/.well-known/security.txt")).status == 404


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/site", "./site/"),
        ("/site/docs", "./docs/"),
        ("/site/docs?a=1&b=//x", "./docs/?a=1&b=//x"),
        ("/site/docs?\xe9=a%20b\t[]", "./docs/?%C3%A9=a%20b%09%5B%5D"),
        ("/site/docs/a%20b", "./a%20b/"),
        ("//site//docs", "./docs/"),
    ],
)
async def test_a_folder_with_an_index_leads_to_its_path_with_a_slash(
    fetch: Fetch, folder: Path, target: str, location: str
) -> None:
    app = await make(folder, "/site")
    # Behind a proxy that removes a prefix, the relative target stays below it.
    for scope in ({}, {"root_path": "/app"}):
        response = await fetch(app, target, scope=scope)
        assert (response.status, response.headers["location"]) == (302, location)


async def test_a_path_below_root_path_is_served(fetch: Fetch, folder: Path) -> None:
    app = await make(folder, "/assets")
    assert (await fetch(app, "/shop/assets/app.js", scope={"root_path": "/shop"})).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE"])
async def test_other_methods_are_405_for_a_file_and_404_for_none(fetch: Fetch, folder: Path, method: str) -> None:
    app = await make(folder, fallback="index.html")
    for target in ("/app.js", "/", "/docs"):
        response = await fetch(app, target, method, headers=PAGE)
        assert (response.status, response.headers["allow"]) == (405, ALLOW)
    assert (await fetch(app, "/missing", method, headers=PAGE)).status == 404


async def test_options_says_which_methods_a_file_has(fetch: Fetch, folder: Path) -> None:
    response = await fetch(await make(folder), "/app.js", "OPTIONS")
    assert (response.status, response.headers["allow"], response.body) == (204, ALLOW, b"")


async def test_a_disk_that_fails_is_503(fetch: Fetch, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = await make(folder)

    def fail(path: object, **_: object) -> os.stat_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gaman_static._folder.os.stat", fail)
    assert (await fetch(app, "/app.js")).status == 503


async def test_a_request_leaves_no_file_open(fetch: Fetch, folder: Path) -> None:
    app = await make(folder, fallback="index.html")
    targets = ["/app.js", "/docs", "/docs/", "/missing", "/outside.txt", "/pipe"]
    await asyncio.gather(*(fetch(app, target, headers=PAGE) for target in targets))
    before = len(os.listdir("/proc/self/fd"))
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        await asyncio.gather(*(fetch(app, target, method, headers={"accept-encoding": "br", **PAGE}) for target in targets))
        await fetch(app, "/app.js", method, disconnects=True)
    assert len(os.listdir("/proc/self/fd")) == before


# Beside routes and other integrations


async def test_routes_precede_files_and_their_answers_stay(fetch: Fetch, folder: Path) -> None:
    async def refuse(ctx: Context) -> str:
        raise HTTPError(404, "no such app")

    async def nothing(ctx: Context) -> None:
        return None

    routes = {"/notes": hello, "/app.js": refuse, "/docs/": nothing, "/:id/about": refuse}
    app = await make(folder, routes=routes, fallback="index.html")
    assert (await fetch(app, "/notes")).text == "hello"
    for target, text in {"/app.js": "no such app", "/docs/": "Not Found", "/7/about": "no such app"}.items():
        response = await fetch(app, target, headers=PAGE)
        assert (response.status, response.text) == (404, text)


async def test_middleware_guards_files(fetch: Fetch, folder: Path) -> None:
    async def guard(ctx: Context) -> None:
        if ctx.header("authorization") is None:
            raise HTTPError(401)

    app = await make(folder, routes={"/docs/*": guard}, fallback="index.html")
    for target in ("/docs", "/docs/", "/docs/index.html", "//docs//index.html", "/%64ocs/", "/docs/missing"):
        assert (await fetch(app, target, headers=PAGE)).status == 401
        assert (await fetch(app, target, headers={"authorization": "yes", **PAGE})).status in (200, 302)
    assert (await fetch(app, "/app.js")).status == 200


async def test_a_path_whose_routes_have_only_other_methods_may_be_a_file_or_a_page(fetch: Fetch, folder: Path) -> None:
    app = await make(folder, routes={"/login": {"POST": hello}, "/notes": {"POST": hello}}, fallback="index.html")
    assert (await fetch(app, "/login", "POST")).text == "hello"
    assert (await fetch(app, "/notes")).text == "no ending"
    assert (await fetch(app, "/login", headers=PAGE)).text == "<title>site</title>"
    for method in ("GET", "PUT"):
        refused = await fetch(app, "/login", method)
        assert (refused.status, refused.headers["allow"]) == (405, "POST, OPTIONS")


async def test_several_folders_of_one_app_complement_each_other(fetch: Fetch, folder: Path, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "LICENSE").write_text("a licence")
    app = App({}, integrations=[static("/", folder, fallback="index.html"), static("/uploads", uploads)])
    await app.load()
    assert [integration.name for integration in app.integrations] == [f"static /uploads from {uploads}", f"static / from {folder}"]
    # The browser opens it as a page, and it isn't the fallback.
    assert (await fetch(app, "/uploads/LICENSE", headers=PAGE)).text == "a licence"
    assert (await fetch(app, "/app.js")).text == SCRIPT


async def test_of_several_folders_below_one_path_the_first_that_has_the_file_counts(
    fetch: Fetch, folder: Path, tmp_path: Path
) -> None:
    theme = tmp_path / "theme"
    theme.mkdir()
    (theme / "app.js").write_text("themed")
    app = App({}, integrations=[static("/assets", theme), static("/assets", folder)])
    await app.load()
    assert [(await fetch(app, f"/assets/{name}")).text for name in ("app.js", "notes")] == ["themed", "no ending"]
    with pytest.raises(ConfigError, match=r"two named 'static /assets from .*theme'.*remove one"):
        App({}, integrations=[static("/assets", theme), static("/assets", theme)])


async def test_a_file_has_no_field_of_the_session(fetch: Fetch, folder: Path) -> None:
    async def login(ctx: Context) -> str:
        await ctx.session.set("user", 1)
        return "welcome"

    app = App({"/login": login}, integrations=[session("a secret for these tests, which is long"), static("/", folder)])
    await app.load()
    cookie = (await fetch(app, "/login")).headers["set-cookie"].split(";")[0]
    response = await fetch(app, "/notes", headers={"cookie": cookie})
    assert told(response, "set-cookie", "vary", "cache-control") == (None, None, "no-cache")


# Encodings


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("br", "br"),
        ("gzip, deflate, br, zstd", "br"),
        ("GZIP, x-other", "gzip"),
        ("x-gzip", "gzip"),
        ("br;q=0.5, gzip;q=0.8", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br;q=0.000, gzip ; q=0.001", "gzip"),
        ("*", "br"),
        ("*;q=0.5, gzip", "gzip"),
        ("br;q=0, *", "gzip"),
        ("identity", None),
        ("identity;q=0.5, gzip;q=0.4", None),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("identity;q=0, *;q=0", None),
        ("*;q=0", None),
        ("deflate", None),
        ("gzip;q=2", None),
        ("gzip;q=", None),
        ("gzip;level=9", None),
        (",,;q=1, ,gzip", "gzip"),
    ],
)
async def test_the_variant_that_the_client_prefers_is_sent(
    fetch: Fetch, folder: Path, accepted: str | None, coding: str | None
) -> None:
    headers = {} if accepted is None else {"accept-encoding": accepted}
    response = await fetch(await make(folder), "/app.js", headers=headers)
    assert response.status == 200
    assert response.body == {"br": BROTLI, "gzip": GZIPPED, None: SCRIPT.encode()}[coding]
    assert told(response, "content-encoding", "vary") == (coding, "Accept-Encoding")
    assert told(response, "content-type", "content-length") == ("text/javascript; charset=utf-8", str(len(response.body)))


def test_a_refused_identity_is_not_sent_if_there_is_another_variant() -> None:
    assert choose(["br", IDENTITY], ["identity;q=0, br;q=0.001"]) == "br"
    assert choose(["br", IDENTITY], ["gzip", "br"]) == "br"


async def test_a_file_without_variants_does_not_vary(fetch: Fetch, folder: Path) -> None:
    response = await fetch(await make(folder), "/notes", headers={"accept-encoding": "br, gzip"})
    assert told(response, "content-encoding", "vary") == (None, None)


async def test_each_variant_has_its_own_tag_and_ranges(fetch: Fetch, folder: Path) -> None:
    # As reproducible builds date them.
    for name in ("app.js", "app.js.br", "app.js.gz"):
        os.utime(folder / name, (315_532_800, 315_532_800))
    app = await make(folder)
    tags: dict[str, str] = {}
    for coding, content in {"br": BROTLI, "gzip": GZIPPED, "identity": SCRIPT.encode()}.items():
        headers = {"accept-encoding": coding}
        tags[coding] = tag = (await fetch(app, "/app.js", headers=headers)).headers["etag"]
        ranged = await fetch(app, "/app.js", headers={**headers, "range": "bytes=3-9", "if-range": tag})
        assert (ranged.status, ranged.body) == (206, content[3:10])
        assert ranged.headers["content-range"] == f"bytes 3-9/{len(content)}"
        fresh = await fetch(app, "/app.js", headers={**headers, "if-none-match": tag})
        assert (fresh.status, fresh.body) == (304, b"")
        assert told(fresh, "etag", "vary", "cache-control") == (tag, "Accept-Encoding", "no-cache")
    assert len(set(tags.values())) == 3
    # The tag of one variant doesn't validate another.
    other = await fetch(app, "/app.js", headers={"accept-encoding": "gzip", "if-none-match": tags["br"]})
    assert (other.status, other.body) == (200, GZIPPED)


async def test_variants_of_one_size_and_time_never_share_a_tag(fetch: Fetch, folder: Path) -> None:
    (folder / "app.js.br").write_bytes(b"x" * len(GZIPPED))
    for name in ("app.js", "app.js.br", "app.js.gz"):
        os.utime(folder / name, (315_532_800, 315_532_800))
    app = await make(folder)
    found = [await fetch(app, "/app.js", headers={"accept-encoding": coding}) for coding in ("br", "gzip")]
    assert [response.headers.get("content-encoding") for response in found] == [None, "gzip"]
    assert found[0].headers["etag"] != found[1].headers["etag"]


async def test_a_variant_that_is_stale_or_no_file_is_not_sent(fetch: Fetch, folder: Path, tmp_path: Path) -> None:
    os.utime(folder / "app.js.br", (1_700_000_000, 1_700_000_000))
    (folder / "notes.br").mkdir()
    (folder / "notes.gz").symlink_to(tmp_path / "secret.txt")
    app = await make(folder)
    assert (await fetch(app, "/app.js", headers={"accept-encoding": "br"})).text == SCRIPT
    assert (await fetch(app, "/notes", headers={"accept-encoding": "br, gzip"})).text == "no ending"


async def test_a_compressed_file_under_its_own_name_is_sent_as_it_is(fetch: Fetch, folder: Path) -> None:
    response = await fetch(await make(folder), "/app.js.gz", headers={"accept-encoding": "gzip"})
    assert (response.body, *told(response, "content-type", "content-encoding")) == (GZIPPED, "application/octet-stream", None)


# Caching

UNCHANGING = [
    "app.3f9a1c2b.js",
    "app-3f9a1c2b4d5e6f70.css",
    "main.27e20196a850.chunk.js",
    "logo.0a1b2c3d.png",
    "fonts/inter.9f86d081884c7d65.woff2",
    "assets/index-BwX9zQ1k.js",
    "index-B-X9_Q1k.css",
    "index-BwX9zQ1k.js.map",
    "chunk-Z3XQ4K2A.js",
]
CHANGING = [
    "index.html",
    "app.js",
    "jquery-3.7.1.min.js",
    "my-component.js",
    "my-DataGrid.js",
    "demo-Html5App.js",
    "x-Web3Docs.js",
    "page.3f9a1c2b.html",
    "report-3f9a1c2b.pdf",
    "notes-2a3b4c5d.md",
    "photo-IMG_2A34.css",
    "release-VERSION2.js",
    "Inter-SemiBold.woff2",
    "vendor.deadbeef.js",
    "report.20240101.pdf",
    "photo-20240101123000.jpg",
    "IMG-IMG_2024.jpg",
    "icon-192x192.png",
    "icon-1024x1024.png",
    "setup-Win32x64.exe",
    "550e8400-e29b-41d4-a716-446655440a0b.jpg",
    "app.3F9A1C2B.js",
    "app.3f9a1c2.js",
    "app3f9a1c2b.js",
    "app.3f9a1c2b",
    "3f9a1c2b.d/index.html",
]


@pytest.mark.parametrize("name", [*UNCHANGING, *CHANGING])
async def test_only_files_with_a_hash_in_their_names_are_cached_without_a_check(fetch: Fetch, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    response = await fetch(await make(tmp_path), f"/{name}")
    assert response.headers["cache-control"] == (IMMUTABLE if name in UNCHANGING else "no-cache")


async def test_options_decide_what_is_cached_and_how(fetch: Fetch, folder: Path) -> None:
    found: dict[str, str] = {}
    for hashed in (HASHED, r"^docs/", None):
        app = await make(folder, hashed=hashed, cache_control="private, max-age=60")
        for target in ("/app.3f9a1c2b.js", "/docs/", "/notes"):
            found[f"{hashed} {target}"] = (await fetch(app, target)).headers["cache-control"]
    immutable = {key for key, value in found.items() if value == IMMUTABLE}
    assert immutable == {f"{HASHED} /app.3f9a1c2b.js", "^docs/ /docs/"}
    assert set(found.values()) == {IMMUTABLE, "private, max-age=60"}


# The fallback


@pytest.mark.parametrize("target", ["/users/7", "/users/john.doe", "/v1.2", "/users/", "/a%2Fb", "/page.html", "/docs/missing"])
async def test_a_page_that_does_not_exist_is_the_fallback(fetch: Fetch, folder: Path, target: str) -> None:
    app = await make(folder, fallback="index.html")
    for method in ("GET", "HEAD"):
        response = await fetch(app, target, method, headers=PAGE)
        assert (response.status, response.text) == (200, "<title>site</title>" if method == "GET" else "")
        assert told(response, "content-type", "cache-control", "vary") == ("text/html; charset=utf-8", "no-cache", "Accept")


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "application/json",
        "text/*",
        "text/html;q=0",
        "text/html; level=1; q=0.0, */*",
        "text/htmlx",
        "image/webp,*/*",
    ],
)
async def test_a_program_gets_404_instead_of_the_fallback(fetch: Fetch, folder: Path, accept: str | None) -> None:
    response = await fetch(
        await make(folder, fallback="index.html"), "/users/7", headers={} if accept is None else {"accept": accept}
    )
    assert response.status == 404


@pytest.mark.parametrize("accept", ["text/html", "TEXT/HTML;charset=utf-8", "application/json, text/html;q=0.1", "text/html;q=0.5"])
async def test_a_client_that_names_html_gets_the_fallback(fetch: Fetch, folder: Path, accept: str) -> None:
    assert (await fetch(await make(folder, fallback="index.html"), "/users/7", headers={"accept": accept})).status == 200


@pytest.mark.parametrize(
    "target", ["/assets/app.js", "/style.css", "/app.js.map", "/photo.png", "/data.json", "/.env", "/a/.git/x"]
)
async def test_a_missing_asset_is_never_the_fallback(fetch: Fetch, folder: Path, target: str) -> None:
    assert (await fetch(await make(folder, fallback="index.html"), target, headers=PAGE)).status == 404


async def test_a_fallback_has_variants_and_stays_below_its_path(fetch: Fetch, folder: Path) -> None:
    (folder / "index.html.gz").write_bytes(gzip.compress(b"<title>site</title>"))
    app = await make(folder, "/app", fallback="index.html")
    response = await fetch(app, "/app/x", headers={"accept-encoding": "gzip", **PAGE})
    assert told(response, "content-encoding", "vary") == ("gzip", "Accept, Accept-Encoding")
    assert (await fetch(app, "/x", headers=PAGE)).status == 404


# The options


async def test_a_relative_folder_is_resolved_once_when_the_application_starts(
    fetch: Fetch, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integration = static("/", "dist")
    monkeypatch.chdir(tmp_path)
    app = App({}, integrations=[integration])
    await app.load()
    monkeypatch.chdir("/")
    assert (await fetch(app, "/notes")).status == 200


@pytest.mark.parametrize(
    "path", ["assets", "", "/:name", "/a/*", "*", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/a%20b", "/{id}", 7]
)
def test_a_path_that_is_not_literal_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        static(path, "public")
    assert str(raised.value) == (
        f"static({path!r}, ...): the path is '/' or literal segments such as '/assets', without a parameter or *"
    )


@pytest.mark.parametrize(
    ("folder", "options", "fault"),
    [
        (None, {}, "static('/', None): the folder is a str or a Path, such as 'public'"),
        ("", {}, "static('/', ''): the folder is a str or a Path, such as 'public'"),
        ("public", {"hashed": "["}, "static(hashed='[') isn't a regular expression: unterminated character set at position 0"),
        ("public", {"hashed": True}, "static(hashed=True) isn't a regular expression: "),
        (
            "public",
            {"cache_control": "a\nb"},
            "static(cache_control='a\\nb') isn't the value of a header; write one such as 'no-cache'",
        ),
        ("public", {"cache_control": None}, "static(cache_control=None) isn't the value of a header; write one such as 'no-cache'"),
    ],
)
def test_an_invalid_option_is_refused_with_its_fix(folder: Any, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        static("/", folder, **options)
    assert str(raised.value).startswith(fault)


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("missing", {}, "static: the folder {0!r}, which is {0!r}, doesn't exist; create it, or start elsewhere"),
        ("app.js", {}, "static: the folder {0!r}, which is {0!r}, is a file; name its folder"),
        ("", {"fallback": "app.html"}, "static: the fallback 'app.html' isn't a file in {0!r}; build it first, or name another"),
        ("", {"fallback": "docs"}, "static: the fallback 'docs' isn't a file in {0!r}; build it first, or name another"),
        (
            "",
            {"fallback": "../secret.txt"},
            "static: the fallback '../secret.txt' isn't a file in {0!r}; build it first, or name another",
        ),
    ],
)
async def test_a_folder_that_cannot_be_served_stops_the_start(folder: Path, name: str, options: dict[str, Any], fault: str) -> None:
    app = App({}, integrations=[static("/", folder / name, **options)])
    with pytest.raises(ConfigError) as raised:
        await app.load()
    assert str(raised.value) == fault.format(str(folder / name).rstrip("/"))


async def test_the_folder_may_be_a_link(fetch: Fetch, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert (await fetch(await make(tmp_path / "current"), "/notes")).status == 200


def test_finding_a_file_is_left_to_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    seen: list[threading.Thread] = []
    find = Folder.find

    def watched(self: Folder, path: str) -> dict[str, str] | None:
        seen.append(threading.current_thread())
        return find(self, path)

    async def run() -> None:
        from tests.asgi import fetch

        app = await make(folder, fallback="index.html")
        for target in ("/app.js", "/missing", "/docs"):
            await fetch(app, target, headers=PAGE)

    monkeypatch.setattr(Folder, "find", watched)
    asyncio.run(run())
    assert len(seen) >= 4
    assert threading.main_thread() not in seen


async def test_the_response_of_a_handler_is_unaffected(fetch: Fetch, folder: Path) -> None:
    async def download(ctx: Context) -> Response:
        return Response.file("missing.txt", root=folder)

    # Although on_unmatched would find a page, the handler's own 404 stays.
    assert (await fetch(await make(folder, routes={"/x": download}, fallback="index.html"), "/x", headers=PAGE)).status == 404
