from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman import App, ConfigError, Context
from gaman._proxies import TrustedProxies

if TYPE_CHECKING:
    from tests.asgi import Fetch

NAMES = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]


def origin(
    *fields: tuple[str, str], peer: str | None = "127.0.0.1", trusted: str | list[str] = "127.0.0.1,10.0.0.0/8,2001:db8:1::/48"
) -> tuple[Any, ...]:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    scope = {"scheme": "http", "headers": headers, "client": peer and (peer, 5000)}
    return tuple(TrustedProxies(trusted).find_origin(scope))


def xff(*values: str, **options: Any) -> str | None:
    ip: str | None = origin(*(("x-forwarded-for", value) for value in values), **options)[0]
    return ip


def forwarded(*values: str, **options: Any) -> tuple[Any, ...]:
    return origin(*(("forwarded", value) for value in values), **options)


@pytest.mark.parametrize(
    ("values", "ip"),
    [
        (["203.0.113.5"], "203.0.113.5"),
        (["203.0.113.5:4711"], "203.0.113.5"),
        (["2001:db8::5"], "2001:db8::5"),
        (["[2001:DB8::5]"], "2001:db8::5"),
        (["[2001:db8::5]:4711"], "2001:db8::5"),
        (["::ffff:203.0.113.5"], "203.0.113.5"),
        # The client itself may have written what is before the first untrusted address.
        (["1.1.1.1, 203.0.113.5"], "203.0.113.5"),
        (["1.1.1.1, 203.0.113.5, 10.1.2.3"], "203.0.113.5"),
        (["127.0.0.1, 203.0.113.5, ::ffff:10.1.2.3, 2001:db8:1::9"], "203.0.113.5"),
        (["1.1.1.1", "203.0.113.5", "10.1.2.3"], "203.0.113.5"),
        (["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        # Text that isn't an address ends the walk at the hop that wrote it.
        (["unknown"], "127.0.0.1"),
        (["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (["1.1.1.1,, 10.0.0.2"], "10.0.0.2"),
        ([""], "127.0.0.1"),
        (["1.1.1.1, 10.0.0.2,"], "127.0.0.1"),
        *(
            ([f"1.1.1.1, {bad}"], "127.0.0.1")
            for bad in (
                "300.1.1.1",
                "010.0.0.1",
                "1.1.1",
                "[::1",
                "::1]",
                "[::1]x",
                "1.1.1.1:x",
                "1.1.1.1:999999",
                "fe80::1%a",
                "\xff",
            )
        ),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_trusted(values: list[str], ip: str) -> None:
    assert xff(*values) == ip


@pytest.mark.parametrize(
    ("trusted", "peer", "ip"),
    [
        ("10.0.0.1", "10.0.0.1", "1.1.1.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.0/8, ::1", "::1", "1.1.1.1"),
        (["10.0.0.0/8", "::1"], "::ffff:10.0.0.1", "1.1.1.1"),
        ("fe80::/10", "fe80::1%eth0", "1.1.1.1"),
        ("127.0.0.1", None, None),
        ("127.0.0.1", "", None),
        ("unix:", None, "1.1.1.1"),
        ("unix:", "", "1.1.1.1"),
        ("unix:", "127.0.0.1", "127.0.0.1"),
        ("*", "203.0.113.9", "1.1.1.1"),
        ("*", None, "1.1.1.1"),
        ("*", "testclient", "1.1.1.1"),
        ("", "127.0.0.1", "127.0.0.1"),
        ([], "127.0.0.1", "127.0.0.1"),
    ],
)
def test_only_a_trusted_peers_fields_are_read(trusted: str | list[str], peer: str | None, ip: str | None) -> None:
    assert xff("1.1.1.1", peer=peer, trusted=trusted) == ip


@pytest.mark.parametrize(
    ("trusted", "peer", "ip"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1", "1.1.1.1"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1", "1.1.1.1"),
        ("::ffff:10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("::ffff:10.0.0.0/104", "10.255.0.1", "1.1.1.1"),
        ("::ffff:10.0.0.0/104", "11.0.0.1", "11.0.0.1"),
        ("::FFFF:a00:0/104", "::ffff:10.0.0.1", "1.1.1.1"),
        ("::ffff:0:0/96", "203.0.113.5", "1.1.1.1"),
        ("::/0", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "::ffff:a00:1", "1.1.1.1"),
        # No proxy is trusted here, but a mapped peer still counts as its IPv4 address.
        ("", "::ffff:203.0.113.5", "203.0.113.5"),
        ("", "2001:DB8::5", "2001:db8::5"),
    ],
)
def test_an_ipv4_mapped_address_counts_as_its_ipv4_address(trusted: str, peer: str, ip: str) -> None:
    assert xff("1.1.1.1", peer=peer, trusted=trusted) == ip
    assert xff("1.1.1.1", f"[{peer}]:80" if ":" in peer else peer, trusted=f"127.0.0.1,{trusted}") == ip


def test_at_most_32_hops_are_read() -> None:
    for hops, ip in [(31, "1.1.1.1"), (32, "10.0.0.1"), (33, "10.0.0.1"), (20_000, "10.0.0.1")]:
        assert xff(f"1.1.1.1{',10.0.0.1' * hops}") == ip
        assert xff("1.1.1.1", *["10.0.0.1"] * hops) == ip
        assert forwarded(f"for=1.1.1.1;proto=https{',for=10.0.0.1' * hops}") == (ip, "https" if hops == 31 else "http", None)
    found = origin(("x-forwarded-for", "10.0.0.1," * 31 + "10.0.0.1"), ("x-forwarded-host", "evil.example" + ",a" * 32))
    assert found == ("10.0.0.1", "http", "a")


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
def test_a_hop_of_more_than_1024_characters_is_invalid(name: str) -> None:
    long = f"for=203.0.113.5;x={'y' * 1024}" if name == "forwarded" else f"203.0.113.5{' ' * 1024}"
    near = "for=10.0.0.1" if name == "forwarded" else "10.0.0.1"
    assert origin((name, f"{long},{near}"))[0] == "10.0.0.1"


def test_an_asterisk_trusts_the_peer_but_not_the_addresses_that_it_names() -> None:
    assert xff("1.1.1.1, 203.0.113.5", trusted="*") == "203.0.113.5"
    assert xff("1.1.1.1, 203.0.113.5", trusted="*, 203.0.113.0/24") == "1.1.1.1"


def test_by_default_only_this_machine_is_trusted() -> None:
    for peer, ip in [
        ("127.0.0.1", "1.1.1.1"),
        ("127.9.9.9", "1.1.1.1"),
        ("::1", "1.1.1.1"),
        (None, "1.1.1.1"),
        ("10.0.0.1", "10.0.0.1"),
    ]:
        scope = {"scheme": "http", "headers": [(b"x-forwarded-for", b"1.1.1.1")], "client": peer and (peer, 1)}
        assert TrustedProxies().find_origin(scope).ip == ip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("proto", "https")], ("https", None)),
        ([("proto", "HTTPS"), ("host", "example.com:8443")], ("https", "example.com:8443")),
        ([("proto", "ftp"), ("host", "a/b")], ("http", None)),
        ([("proto", "javascript"), ("host", "a b")], ("http", None)),
        ([("host", "[2001:db8::1]:8443")], ("http", "[2001:db8::1]:8443")),
        ([("host", "evil.example\r\nx")], ("http", None)),
        # One proxy has written one hop; the client may have written what is before it.
        ([("proto", "https, http"), ("host", "evil.example, good.example")], ("http", "good.example")),
        ([("proto", "https"), ("proto", "http")], ("http", None)),
        ([("for", "1.1.1.1, 203.0.113.5"), ("proto", "https, http")], ("http", None)),
        # Two proxies: the outer one knows which scheme and host the client used.
        ([("for", "203.0.113.5, 10.0.0.1"), ("proto", "https, http"), ("host", "a.example, inner")], ("https", "a.example")),
        ([("for", "203.0.113.5, 10.0.0.1"), ("proto", "https")], ("https", None)),
        ([("for", "1.1.1.1, 203.0.113.5, 10.0.0.1"), ("proto", "https, http, http")], ("http", None)),
    ],
)
def test_scheme_and_host_are_those_of_the_same_hop(fields: list[tuple[str, str]], expected: tuple[str, str | None]) -> None:
    assert origin(*((f"x-forwarded-{name}", value) for name, value in fields))[1:] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["for=203.0.113.5;proto=https;host=example.com"], ("203.0.113.5", "https", "example.com")),
        (['For="[2001:db8::5]:4711" ; Proto=HTTPS;by=_x'], ("2001:db8::5", "https", None)),
        (['for="203.0.113.5:80";host="example.com:8443"'], ("203.0.113.5", "http", "example.com:8443")),
        (["for=1.1.1.1;proto=https, for=203.0.113.5"], ("203.0.113.5", "http", None)),
        (["for=1.1.1.1", "for=203.0.113.5;proto=https", "for=10.0.0.1;proto=http"], ("203.0.113.5", "https", None)),
        # A port may be obfuscated, which doesn't affect the address.
        (['for="203.0.113.5:_port"'], ("203.0.113.5", "http", None)),
        (['for="[2001:db8::5]:_a.B-1_";proto=https'], ("2001:db8::5", "https", None)),
        (['for="203.0.113.5:_"'], ("127.0.0.1", "http", None)),
        (['for="203.0.113.5:_a b"'], ("127.0.0.1", "http", None)),
        (["for=unknown;proto=https"], ("127.0.0.1", "https", None)),
        (["for=_hidden"], ("127.0.0.1", "http", None)),
        (["proto=https"], ("127.0.0.1", "https", None)),
        # Escaped characters, and commas within quotes.
        (['for=203.0.113.5;x="a,\\",for=1.1.1.1"'], ("203.0.113.5", "http", None)),
        (['for=203.0.113.5;x="a, for=1.1.1.1;y=";host="exampl\\e.com"'], ("203.0.113.5", "http", "example.com")),
        # A quote that the client has left open doesn't swallow what a proxy has appended.
        (['for="1.1.1.1, for=203.0.113.5;proto=https'], ("203.0.113.5", "https", None)),
        (['for="', "for=203.0.113.5"], ("203.0.113.5", "http", None)),
        (['x="', 'for="[2001:db8::5]"'], ("2001:db8::5", "http", None)),
        (['x="\\', "for=203.0.113.5"], ("203.0.113.5", "http", None)),
        *(
            ([bad], ("127.0.0.1", "http", None))
            for bad in (
                "",
                ";",
                "for",
                "for=",
                "for=1.1.1.1 x",
                "for=1.1.1.1;for=2.2.2.2",
                'for="1.1.1.1"x',
                "=1.1.1.1",
                '"',
                "\xff",
            )
        ),
    ],
)
def test_forwarded_is_read_from_its_end(values: list[str], expected: tuple[Any, ...]) -> None:
    assert forwarded(*values) == expected


@pytest.mark.parametrize("field", [("x-forwarded-for", "203.0.113.5"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "a")])
def test_forwarded_is_ignored_beside_an_x_forwarded_field(field: tuple[str, str]) -> None:
    assert origin(("forwarded", "for=1.1.1.1;proto=https;host=evil.example"), field) == origin(field)


texts = st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n\0")) | st.sampled_from(
    ["127.0.0.1", "for=127.0.0.1;proto=https;host=a", "10.0.0.1, 127.0.0.1", "https", 'for="[::1]"', '"', "unknown", "example.com"]
)
fields = st.lists(st.tuples(st.sampled_from(NAMES), texts | st.lists(texts).map(",".join)))
addresses = st.ip_addresses().map(str).filter(lambda ip: ip != "127.0.0.1" and not ip.startswith(("10.", "2001:db8:1:", "::ffff")))


@given(fields, addresses)
def test_an_untrusted_client_cannot_forge_its_address(sent: list[tuple[str, str]], client: str) -> None:
    assert origin(*sent, peer=client) == (client, "http", None)


@given(fields, addresses)
def test_a_client_behind_a_proxy_that_appends_cannot_forge_its_address(sent: list[tuple[str, str]], client: str) -> None:
    appended = [("x-forwarded-for", client), ("x-forwarded-proto", "http"), ("x-forwarded-host", "a.example")]
    assert origin(*sent, *appended) == (client, "http", "a.example")
    only_forwarded = [field for field in sent if field[0] == "forwarded"]
    assert origin(*only_forwarded, ("forwarded", f'for="[{client}]";proto=http;host=a.example')) == (client, "http", "a.example")


@pytest.mark.parametrize("text", ['"', ",", "a", "\\", "10.0.0.1,", 'for="', "for=10.0.0.1,", ";", "x=1;", " "])
@pytest.mark.parametrize("name", NAMES)
def test_a_long_field_takes_linear_time(name: str, text: str) -> None:
    start = time.process_time()
    origin((name, text * (200_000 // len(text))))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("bad", ["10.0.0.0/33", "10.0.0.1/8", "nginx", "localhost", "fe80::/129", " ", "1.2.3.4:80"])
def test_an_entry_that_is_not_an_address_or_network_is_named(bad: str) -> None:
    for proxies in ([bad], ["127.0.0.1", bad], f"127.0.0.1,{bad}"):
        with pytest.raises(ConfigError, match="trusted_proxies: ") as caught:
            App({}, trusted_proxies=proxies)
        assert repr(bad.strip()) in str(caught.value) or bad in str(caught.value)


@pytest.mark.anyio
async def test_a_context_has_what_a_trusted_proxy_says(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        ctx.cookies.set("a", "1")
        return [ctx.ip, ctx.scheme, ctx.host, ctx.url]

    headers = {"x-forwarded-for": "1.1.1.1", "x-forwarded-proto": "https", "x-forwarded-host": "example.com", "host": "inner:80"}
    response = await fetch(App({"/": handler}), "/?q", headers=headers, scope={"scheme": "http"})
    assert msgspec.json.decode(response.body) == ["1.1.1.1", "https", "example.com", "https://example.com/?q"]
    assert "; Secure" in response.headers["set-cookie"]
    kept = await fetch(App({"/": handler}, trusted_proxies=[]), "/?q", headers=headers, scope={"scheme": "http"})
    assert msgspec.json.decode(kept.body) == ["127.0.0.1", "http", "inner:80", "http://inner:80/?q"]
    assert "; Secure" not in kept.headers["set-cookie"]
