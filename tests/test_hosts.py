from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from gaman import App, ConfigError, Context, _hosts, define_integration

if TYPE_CHECKING:
    from tests.asgi import Fetch

VALID = [
    "example.com",
    "EXAMPLE.com.",
    "localhost:3431",
    "localhost:1",
    "localhost:65535",
    "localhost:00080",
    "a_b-c.example:80",
    "192.0.2.1",
    "[::1]",
    "[2001:DB8::1]:8000",
    "[::ffff:192.0.2.1]",
    "xn--bcher-kva.example",
    "ex%41mple.com",
    "example.com:",
    "a" * 255,
]
INVALID = [
    " ",
    ".",
    ":80",
    "a b",
    "a,b",
    "a, a",
    "user@example.com",
    "example.com:80:80",
    "example.com:port",
    "example.com:-1",
    "example.com:123456",
    "example.com:65536",
    "example.com:0",
    "[::1]:00000",
    "example.com/x",
    "http://example.com",
    "example.com?x",
    "example.com#x",
    "a\\b",
    "a%zz",
    "a\x00",
    "a\nb",
    "a\x7f",
    "caf\xe9",
    "a<b>",
    'a"b',
    "::1",
    "[::1",
    "[:::1]",
    "[v1.x]",
    "[fe80::1%25eth0]",
    "[127.0.0.1]",
    "a" * 256,
]


async def show(ctx: Context) -> list[str]:
    return [ctx.host]


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
async def test_one_valid_host_stays_unchanged(fetch: Fetch, version: str) -> None:
    app = App({"/": show})
    for host in [*VALID, *VALID]:
        response = await fetch(app, headers={"host": host}, scope={"http_version": version})
        assert (response.status, response.text) == (200, f'["{host}"]')


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
@pytest.mark.parametrize("host", INVALID)
async def test_an_invalid_host_gets_400(fetch: Fetch, host: str, version: str) -> None:
    app = App({"/": show})
    for _ in range(2):
        assert (await fetch(app, headers={"host": host}, scope={"http_version": version})).status == 400
        assert (await fetch(app, headers={"host": "example.com"})).status == 200


@pytest.mark.anyio
async def test_an_empty_host_counts_as_none(fetch: Fetch) -> None:
    app = App({"/": show})
    for _ in range(2):
        for version, status in [("1.0", 200), ("1.1", 400), ("2", 200)]:
            response = await fetch(app, headers={"host": ""}, scope={"http_version": version})
            assert (response.status, response.text) == (
                status,
                "the request has no Host" if status == 400 else '["testserver:443"]',
            )


@pytest.mark.anyio
@pytest.mark.parametrize("hosts", [[b"a", b"a"], [b"a", b"b"], [b"", b"a"], [b"a", b""], [b"a", b"b", b"a"]])
async def test_two_hosts_get_400_even_if_they_are_equal(fetch: Fetch, hosts: list[bytes]) -> None:
    app = App({"/": show})
    headers = [(b"accept", b"*/*"), *((b"host", host) for host in hosts), (b"x", b"y")]
    for _ in range(2):
        assert (await fetch(app, headers=headers)).status == 400
        assert (await fetch(app, headers={"host": "a"})).status == 200


@pytest.mark.anyio
async def test_only_http_1_1_needs_a_host(fetch: Fetch) -> None:
    app = App({"/": show})
    for _ in range(2):
        for version, status in [("1.0", 200), ("1.1", 400), ("2", 200), ("1.1", 400)]:
            assert (await fetch(app, scope={"http_version": version, "headers": []})).status == status


@pytest.mark.anyio
async def test_a_refusal_has_a_body_and_a_head_of_the_same_length(fetch: Fetch) -> None:
    refused, head = [await fetch(App({"/": show}), "/", method, headers={"host": "a b"}) for method in ("GET", "HEAD")]
    assert refused.text == "the request has an invalid Host, or two"
    assert refused.headers["content-length"] == head.headers["content-length"] == str(len(refused.body))
    assert head.body == b""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("*", "anything.example:1", 200),
        (["shop.example"], "shop.example", 200),
        (["shop.example"], "SHOP.Example.:8000", 200),
        (["Shop.Example."], "shop.example", 200),
        (["shop.example"], "www.shop.example", 400),
        (["shop.example"], "xshop.example", 400),
        (["shop.example"], "shop.example.evil.example", 400),
        (["*.shop.example"], "www.shop.example", 200),
        (["*.shop.example"], "a.b.shop.example:8000", 200),
        (["*.shop.example"], "shop.example", 400),
        (["*.shop.example"], "evilshop.example", 400),
        (["*.shop.example"], "a-b._c.9.shop.example.", 200),
        (["*.shop.example"], ".shop.example", 400),
        (["*.shop.example"], "..shop.example", 400),
        (["*.shop.example"], "a..shop.example", 400),
        (["*.shop.example"], ".a.shop.example", 400),
        (["*.shop.example"], "a.shop.example..", 400),
        (["*.shop.example"], "evil.example%2f.shop.example", 400),
        (["*.shop.example"], "x';alert(1).shop.example", 400),
        (["*.shop.example"], "a~b.shop.example", 400),
        (["localhost:443"], "localhost:0", 400),
        (["*.shop.example:8000"], "www.shop.example:8000", 200),
        (["*.shop.example:8000"], "www.shop.example", 400),
        (["localhost:8000"], "localhost:8000", 200),
        (["localhost:8000"], "localhost:8001", 400),
        (["localhost:8000"], "localhost", 400),
        (["localhost:443"], "localhost", 200),
        (["localhost:443"], "localhost:", 200),
        (["localhost:80"], "localhost", 400),
        (["[::1]"], "[0:0::1]:80", 200),
        (["[::1]:80"], "[::1]", 400),
        (["192.0.2.1"], "192.0.2.1:80", 200),
        ("a.example, b.example", "b.example", 200),
        ("a.example,b.example", "c.example", 400),
        (["a.example", "*"], "b.example", 200),
    ],
)
async def test_the_listed_hosts_are_allowed(fetch: Fetch, allowed: str | list[str], host: str, status: int) -> None:
    app = App({"/": show}, allowed_hosts=allowed)
    for _ in range(2):
        assert (await fetch(app, headers={"host": host})).status == status


@pytest.mark.anyio
async def test_the_host_from_a_trusted_proxy_must_be_allowed(fetch: Fetch) -> None:
    app = App({"/": show}, allowed_hosts=["shop.example"])
    for host, forwarded, status in [
        ("127.0.0.1:3431", "shop.example", 200),
        ("shop.example", "evil.example", 400),
        ("evil.example", "not a host", 400),
    ]:
        for field, value in [("x-forwarded-host", forwarded), ("forwarded", f'host="{forwarded}"')]:
            assert (await fetch(app, headers={"host": host, field: value})).status == status
            stranger = {"client": ("203.0.113.5", 1)}
            expected = 200 if host == "shop.example" else 400
            assert (await fetch(app, headers={"host": host, field: value}, scope=stranger)).status == expected


@pytest.mark.anyio
async def test_without_a_host_the_servers_own_must_be_allowed(fetch: Fetch) -> None:
    bare: dict[str, Any] = {"http_version": "1.0", "headers": [], "server": ("::1", 8000)}
    assert (await fetch(App({"/": show}, allowed_hosts=["shop.example"]), scope=bare)).status == 400
    assert (await fetch(App({"/": show}, allowed_hosts=["[::1]:8000"]), scope=bare)).status == 200


@pytest.mark.anyio
async def test_the_log_has_the_reason_of_a_refusal_at_debug(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    app, debugged = (App({"/": show}, debug=debug, integrations=[define_integration(name="none")]) for debug in (False, True))

    async def lines(app: App, level: str) -> list[logging.LogRecord]:
        caplog.set_level(level, "gaman")
        caplog.clear()
        assert (await fetch(app, "/x%0Ay", headers={"host": "a b"})).status == 400
        return [*caplog.records]

    assert await lines(app, "INFO") == []
    [record] = await lines(app, "DEBUG")
    [line] = await lines(debugged, "INFO")
    assert line.getMessage().startswith("GET '/x\\ny' 400 in ")
    assert "GET '/x\\\\ny' 400 before any hook" in record.getMessage()
    assert "invalid Host" in record.getMessage()


@pytest.mark.parametrize(
    "bad",
    [
        "https://shop.example",
        "shop.example/",
        "shop.example/path",
        "user@shop.example",
        ".shop.example",
        "www.*.example",
        "shop.*",
        "*shop.example",
        "*.",
        "*.*.example",
        "*.[::1]",
        "*.shop..example",
        "*.%73hop.example",
        "shop.example:0",
        "shop.example:65536",
        "*:8000",
        "::1",
        "shop example",
        "",
        None,
        5,
    ],
)
def test_an_entry_that_is_not_a_host_is_named(bad: Any) -> None:
    for hosts in ([bad], ["shop.example", bad]):
        with pytest.raises(ConfigError, match="allowed_hosts: ") as caught:
            App({}, allowed_hosts=hosts)
        assert repr(bad) in str(caught.value)
        assert "*.shop.example for its subdomains" in str(caught.value)


def test_an_empty_list_of_hosts_is_an_error() -> None:
    with pytest.raises(ConfigError, match="allowed_hosts is empty"):
        App({}, allowed_hosts=[])


def test_a_host_that_is_too_long_is_not_cached() -> None:
    before = _hosts._parse_host.cache_info().currsize
    for length in range(262, 400):
        assert _hosts.parse_host("a" * length) is None
    assert _hosts._parse_host.cache_info().currsize == before


@pytest.mark.anyio
async def test_the_first_refused_host_is_logged(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    app = App({"/": show}, allowed_hosts=["shop.example"])
    for host in ("one.example", "two.example"):
        assert (await fetch(app, "/", headers={"host": host})).status == 400
    [record] = caplog.records
    assert "'one.example'" in record.getMessage()
    assert "allowed_hosts" in record.getMessage()
