"""session() checks its options: an invalid one raises ConfigError, which names the option and the fix."""

from __future__ import annotations

import logging
from collections.abc import Callable
from secrets import randbits, token_hex, token_urlsafe
from typing import Any
from uuid import uuid4

import pytest

from gaman import App, ConfigError, Context, GamanError, Integration, Response
from gaman.session import Session, session
from gaman_session import _options
from gaman_session._integration import integrate as integrate_options
from gaman_session._sealing import Keyring
from gaman_session.drivers.memory import MemoryDriver
from tests.asgi import Fetch
from tests.session.sites import SECRET

pytestmark = pytest.mark.anyio

OTHER = "another secret of the tests, as long as that"
SHORT = "a secret of 31 bytes, too short"
# Chromium's limit for a cookie's age.
FOUR_HUNDRED_DAYS = 400 * 86_400
DEFAULTS: dict[str, Any] = {
    "idle_timeout": None,
    "cookie_name": None,
    "same_site": "lax",
    "domain": None,
    "path": "/",
    "partitioned": False,
    "encrypt": True,
    "serializer": None,
    "max_size": 1 << 20,
    "max_sessions_per_owner": None,
    "csrf": True,
    "browser_session": False,
    "on_event": None,
    "trusted_origins": (),
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAMAN_KEY", raising=False)


def integrate(**options: Any) -> Integration:
    given: dict[str, Any] = {"secret": SECRET, **options}
    return session(**given)


def refusal(**options: Any) -> str:
    """Return the reason why the options are refused."""
    with pytest.raises(ConfigError) as caught:
        integrate(**options)
    return str(caught.value)


def app_with(*integrations: Integration) -> App:
    async def handle(ctx: Context) -> Response:
        await ctx.session.set("count", await ctx.session.get("count", 0) + 1)
        return Response.json(await ctx.session.get("count"))

    return App({"/": handle}, integrations=integrations)


async def set_cookie(fetch: Fetch, integration: Integration, cookie: str | None = None) -> str:
    """Return the Set-Cookie line of a request that changes its session."""
    app = app_with(integration)
    await app.load()
    try:
        response = await fetch(app, headers={"host": "testserver", **({} if cookie is None else {"cookie": cookie})})
    finally:
        await app.shutdown()
    assert response.status == 200
    (line,) = response.headers.getall("set-cookie")
    return line


async def warnings_at_start(integration: Integration, caplog: pytest.LogCaptureFixture) -> list[str]:
    app = app_with(integration)
    with caplog.at_level(logging.WARNING):
        await app.load()
        await app.shutdown()
    assert {record.name for record in caplog.records} <= {"gaman"}
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}
    return [record.getMessage() for record in caplog.records]


# Each option


@pytest.mark.parametrize(
    ("option", "value", "fix"),
    [
        ("max_age", 0, "a whole number of seconds above 0"),
        ("max_age", -1, "a whole number of seconds above 0"),
        ("max_age", 1.5, "a whole number of seconds above 0"),
        ("max_age", "86400", "a whole number of seconds above 0"),
        ("max_age", None, "a whole number of seconds above 0"),
        ("max_age", True, "a whole number of seconds above 0"),
        ("idle_timeout", 0, "a whole number of seconds above 0"),
        ("idle_timeout", -1, "a whole number of seconds above 0"),
        ("idle_timeout", 0.5, "a whole number of seconds above 0"),
        ("idle_timeout", "60", "a whole number of seconds above 0"),
        ("idle_timeout", False, "a whole number of seconds above 0"),
        ("secure", 1, "True or False"),
        ("secure", None, "True or False"),
        ("secure", "false", "True or False"),
        ("partitioned", 1, "True or False"),
        ("partitioned", None, "True or False"),
        ("encrypt", 0, "True or False"),
        ("encrypt", "no", "True or False"),
        ("cookie_name", "", "letters, digits"),
        ("cookie_name", "my cookie", "letters, digits"),
        ("cookie_name", "a=b", "letters, digits"),
        ("cookie_name", "a;b", "letters, digits"),
        ("cookie_name", "a\nb", "letters, digits"),
        ("cookie_name", "sitzung-ä", "letters, digits"),
        ("cookie_name", 5, ""),
        ("same_site", "Lax", "'lax', 'strict' or 'none'"),
        ("same_site", "", "'lax', 'strict' or 'none'"),
        ("same_site", None, "'lax', 'strict' or 'none'"),
        ("same_site", True, "'lax', 'strict' or 'none'"),
        ("same_site", ["lax"], ""),
        ("domain", "", "a host name"),
        ("domain", "https://example.com", "a host name"),
        ("domain", "example.com:443", "a host name"),
        ("domain", "*.example.com", "a host name"),
        ("domain", "example.com ", "a host name"),
        ("domain", "example.com; Secure", "a host name"),
        ("domain", "example.com\r\nX: y", "a host name"),
        ("domain", 5, ""),
        ("path", "", "begins with /"),
        ("path", "app", "begins with /"),
        ("path", "/a;b", "begins with /"),
        ("path", "/a\nb", "begins with /"),
        ("path", None, ""),
        ("serializer", "pickle", "msgpack, json, or an object"),
        ("serializer", "", "msgpack, json, or an object"),
        ("serializer", 5, "encode(value) and decode(data, type)"),
        ("serializer", object(), "encode(value) and decode(data, type)"),
    ],
    ids=lambda value: "an object" if type(value) is object else repr(value) if not isinstance(value, str) else value or "empty",
)
def test_an_invalid_value_is_refused_with_the_options_name_and_its_valid_values(option: str, value: Any, fix: str) -> None:
    reason = refusal(**{option: value})
    assert option in reason or option.replace("_", " ") in reason
    assert fix in reason


def test_a_refused_option_raises_an_error_of_gaman() -> None:
    with pytest.raises(GamanError):
        integrate(max_age=0)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="session\\(\\) has no option 'max_agee'; did you mean 'max_age'"):
        integrate(max_agee=5)


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("secret_key", "; write secret=..."),
        ("https_only", "; write secure=..."),
        ("session_cookie", "; write cookie_name=..."),
        ("SESSION_COOKIE_SECURE", "; write secure=..."),
        ("SESSION_EXPIRE_AT_BROWSER_CLOSE", "; write browser_session=..."),
        ("PERMANENT_SESSION_LIFETIME", "; write max_age=..."),
        ("sameSite", "; write same_site=..."),
        ("httpOnly", "; the cookie is always HttpOnly"),
        ("rolling", "; write idle_timeout=..."),
        ("resave", "; only changes are written, and an empty session isn't stored"),
        ("redis_url", "; write driver={'type': 'redis', 'url': ...}"),
        ("type", "; write driver={'type': ...}"),
        ("same_sites", "; did you mean 'same_site'?"),
    ],
)
def test_an_option_of_other_sessions_is_refused_with_the_one_to_write(option: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        integrate(**{option: "hidden"})
    assert str(caught.value) == f"session() has no option {option!r}{fix}"


def test_a_lifetime_beyond_every_clock_is_refused() -> None:
    # If it were accepted, the first request that sets a value would fail.
    assert "max_age" in refusal(max_age=10**30)


# The secret


async def test_without_a_secret_option_the_secret_comes_from_the_environment(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", SECRET)
    line = await set_cookie(fetch, session())
    assert await _count(fetch, session(secret=SECRET), line) == 2


async def test_the_secret_option_takes_precedence_over_the_environment(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", OTHER)
    line = await set_cookie(fetch, session(secret=SECRET))
    assert await _count(fetch, session(), line) == 1
    monkeypatch.delenv("GAMAN_KEY")
    assert await _count(fetch, session(secret=SECRET), line) == 2


async def _count(fetch: Fetch, integration: Integration, line: str) -> int:
    """Return the count in the session of a Set-Cookie line, as the handler of app_with() counts it."""
    app = app_with(integration)
    await app.load()
    try:
        return int((await fetch(app, headers={"cookie": line.partition(";")[0]})).text)
    finally:
        await app.shutdown()


def test_a_missing_secret_is_an_error_that_says_how_to_create_one() -> None:
    reason = refusal(secret=None)
    for word in ("`gaman key --env .env`", "`gaman serve --env-file .env main:app`", "secret", "export GAMAN_KEY"):
        assert word in reason


def test_an_empty_environment_variable_is_a_missing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", "")
    assert "`gaman key`" in refusal(secret=None)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "   ",
        "\n",
        [],
        (),
        [""],
        [SECRET, ""],
        ["", SECRET],
        [SECRET, None],
        [SECRET, 5],
        5,
        b"x" * 40,
        [b"x" * 40],
        "\ud800" * 40,
        object(),
    ],
    ids=lambda value: "an object" if type(value) is object else ascii(value)[:30],
)
def test_a_value_that_is_not_a_secret_is_refused(secret: Any) -> None:
    reason = refusal(secret=secret)
    assert "secret" in reason
    assert "`gaman key`" in reason
    assert SECRET not in reason


def test_unordered_secrets_are_refused_because_none_is_the_newest() -> None:
    assert "secret" in refusal(secret={SECRET, OTHER})


async def test_the_newest_secret_seals_and_every_secret_opens(fetch: Fetch) -> None:
    old = await set_cookie(fetch, integrate(secret=SECRET))
    rotated = await set_cookie(fetch, integrate(secret=[OTHER, SECRET]))
    assert await _count(fetch, integrate(secret=(OTHER, SECRET)), old) == 2
    assert await _count(fetch, integrate(secret=OTHER), rotated) == 2
    assert await _count(fetch, integrate(secret=SECRET), rotated) == 1
    assert await _count(fetch, integrate(secret=OTHER), old) == 1


async def test_a_short_secret_causes_one_warning_at_start_up(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    integration = integrate(secret=SHORT)
    assert caplog.records == []
    (warning,) = await warnings_at_start(integration, caplog)
    assert "31 bytes" in warning
    assert "`gaman key`" in warning
    assert SHORT not in warning
    caplog.clear()
    app = app_with(integrate(secret=SHORT))
    await app.load()
    for _ in range(3):
        assert (await fetch(app)).status == 200
    await app.shutdown()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("secret", "count"),
    [(SHORT + "!", 0), ([SECRET, SHORT], 1), ([SHORT, "short too"], 2), ("éàèùâêîôûëïüÿçœæ", 0), ("éàèùâêîôûëïüÿçœ", 1)],
    ids=["of 32 bytes", "an old one", "two", "of 32 bytes in UTF-8", "of 30 bytes in UTF-8"],
)
async def test_each_secret_under_32_bytes_causes_a_warning(secret: Any, count: int, caplog: pytest.LogCaptureFixture) -> None:
    assert len(await warnings_at_start(integrate(secret=secret), caplog)) == count


@pytest.mark.parametrize(
    "secret",
    [
        "a" * 32,
        "ab" * 50,
        "a" * 16 + "b" * 16,
        "é" * 16,
        "secret" * 8,
        "0123456789" * 4,
        "0123456789abcdef" * 2,
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "change-me-" * 4,
        "change-me-to-something-long-and-random",
        "CHANGE_THIS_TO_A_LONG_RANDOM_STRING",
        "the-password-of-the-example-is-this",
        "my-secret-key-is-kept-in-this-very-file",
    ],
)
async def test_a_long_secret_that_can_be_guessed_causes_a_warning(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = await warnings_at_start(integrate(secret=[SECRET, secret]), caplog)
    assert "can be guessed" in warning
    assert "`gaman key`" in warning
    assert secret not in warning


@pytest.mark.parametrize(
    "make",
    [lambda: token_urlsafe(32), lambda: token_hex(16), lambda: token_hex(500), lambda: str(uuid4()), lambda: str(randbits(450))],
    ids=["gaman key", "32 hexadecimal digits", "1,000 hexadecimal digits", "UUID", "decimal digits"],
)
def test_a_random_secret_never_causes_a_warning(make: Callable[[], str]) -> None:
    assert [secret for secret in (make() for _ in range(1000)) if _options.check(secret, None, 60, True, **DEFAULTS).warnings] == []


def test_two_secrets_with_the_same_key_id_are_refused() -> None:
    # Found by a search: one pair in four thousand million has the same key id.
    pair = ["a secret of the tests, number 0001497", "a secret of the tests, number 0117975"]
    for secrets in (pair, pair[::-1], [SECRET, *pair], [pair[0], SECRET, pair[1]]):
        reason = refusal(secret=secrets)
        assert "the same key id" in reason
        assert "`gaman key`" in reason
        assert "number" not in reason
    for secret in pair:
        integrate(secret=[secret, SECRET])


async def test_a_secret_may_be_listed_twice(fetch: Fetch) -> None:
    old = await set_cookie(fetch, integrate(secret=OTHER))
    line = await set_cookie(fetch, integrate(secret=[SECRET, OTHER, SECRET]))
    assert await _count(fetch, integrate(secret=[SECRET, SECRET]), line) == 2
    assert await _count(fetch, integrate(secret=[SECRET, OTHER, OTHER]), old) == 2


@pytest.mark.parametrize(
    "driver",
    [
        None,
        {"type": "memory"},
        {"type": "redis", "url": "redis://user:hidden@localhost/1"},
        {"type": "redis", "url": "redis+sentinel://:hidden@localhost,[::1]/main"},
        {"type": "mongodb", "db_name": "x", "uri": "mongodb://user:hidden@localhost"},
    ],
    ids=str,
)
async def test_no_repr_shows_a_secret(driver: Any) -> None:
    secret = "a secret of the tests, which is hidden"
    options = _options.check(secret, driver, 60, True, **DEFAULTS)
    integration = integrate_options(options)
    keyring = Keyring([secret], "sid")
    identity = keyring.identify(keyring.sign_id(b"hidden" * 5 + b"12", False))
    assert identity is not None
    seen = _all_inside([options, App({}, integrations=[integration]), keyring, identity])
    for each in seen:
        assert "hidden" not in repr(each), type(each)
    # No key that is derived from the secret either.
    keys = keyring._newest
    for key in (keys.id, keys.value, keys.owner, keys.note):
        assert repr(key) not in "".join(map(repr, seen))


def _all_inside(objects: list[Any]) -> list[Any]:
    """Return *objects* and, recursively, the objects of this project that they contain."""
    for each in objects:
        held: list[Any] = [*getattr(each, "__dict__", {}).values()]
        held += [getattr(each, name, None) for name in getattr(each, "__slots__", ())]
        held += each if issubclass(type(each), tuple) else []
        held = [getattr(value, "__self__", value) for value in held]
        ours = [value for value in held if issubclass(type(value), tuple) or type(value).__module__.startswith("gaman")]
        objects += [value for value in ours if all(value is not other for other in objects)]
    return [each for each in objects if type(each).__module__.startswith("gaman")]


@pytest.mark.parametrize(("max_age", "count"), [(FOUR_HUNDRED_DAYS, 0), (FOUR_HUNDRED_DAYS + 1, 1)], ids=["400 days", "more"])
async def test_a_lifetime_that_browsers_shorten_causes_a_warning(
    max_age: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    warnings = await warnings_at_start(integrate(max_age=max_age), caplog)
    assert len(warnings) == count
    assert all("max_age" in warning and "400 days" in warning for warning in warnings)


async def test_ordinary_options_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert await warnings_at_start(integrate(driver={"type": "memory"}, idle_timeout=60), caplog) == []


# The driver


@pytest.mark.parametrize(
    "kind",
    ["sqlite", "", "Memory", "memory ", None, 5, ["memory"], "../memory", "drivers.memory"],
    ids=repr,
)
def test_an_unknown_type_of_driver_is_refused_with_the_known_types(kind: Any) -> None:
    reason = refusal(driver={"type": kind})
    assert repr(kind) in reason
    assert "cookies" in reason
    assert "memory" in reason


def test_a_dict_without_a_type_is_refused_with_the_known_types() -> None:
    reason = refusal(driver={"max_sessions": 5})
    assert "type" in reason
    assert "memory" in reason


@pytest.mark.parametrize(
    ("driver", "named", "takes"),
    [
        ({"type": "memory", "max_session": 5}, "'max_session'", "max_sessions"),
        ({"type": "memory", "self": 5}, "'self'", "max_sessions"),
        ({"type": "memory", 5: 5}, "5", "max_sessions"),
        ({"type": "cookies", "max_sessions": 5}, "'max_sessions'", "ended"),
        ({"type": "cookies", "name": "x"}, "'name'", "ended"),
    ],
    ids=str,
)
def test_an_unknown_option_of_a_driver_is_refused_with_its_known_options(driver: Any, named: str, takes: str) -> None:
    reason = refusal(driver=driver)
    assert f"the {driver['type']} driver has no option {named}" in reason
    assert f"; it takes {takes}" in reason


def test_a_misspelt_option_or_driver_is_refused_with_a_suggestion() -> None:
    assert refusal(driver={"type": "memory", "max_session": 5}).endswith("; did you mean 'max_sessions'?")
    assert refusal(driver={"type": "mongo"}).endswith("; did you mean 'mongodb'?")
    assert refusal(serializer="message pack").endswith("; did you mean 'msgpack'?")
    assert refusal(driver={"type": "memory", "prefix": 5}).endswith("it takes max_sessions")


def test_a_driver_without_a_type_is_refused_with_the_known_types_and_its_values_stay_private() -> None:
    reason = refusal(driver={"url": "redis://:hidden@localhost"})
    assert "the dict has no 'type'; the types are cookies, memory" in reason
    assert "hidden" not in reason


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, True, float("inf")], ids=repr)
def test_an_invalid_limit_of_the_memory_driver_is_refused(value: Any) -> None:
    reason = refusal(driver={"type": "memory", "max_sessions": value})
    assert f"max_sessions={value!r}" in reason
    assert "a whole number above 0" in reason


class Driverlike(MemoryDriver):
    """A user's Driver object."""

    name = "mine"


async def test_a_users_driver_object_is_a_driver(fetch: Fetch) -> None:
    driver = Driverlike(max_sessions=5)
    app = app_with(integrate(driver=driver))
    await app.load()
    assert (await fetch(app)).status == 200
    assert len(driver) == 1
    await app.shutdown()


def test_the_callers_dict_is_not_changed() -> None:
    driver = {"type": "memory", "max_sessions": 5}
    integrate(driver=driver)
    assert driver == {"type": "memory", "max_sessions": 5}


@pytest.mark.parametrize(
    ("driver", "fix"),
    [
        ("redis://:hidden@localhost", "driver={'type': 'redis', 'url': ...}"),
        ("rediss+cluster://:hidden@localhost", "driver={'type': 'redis', 'url': ...}"),
        ("mongodb+srv://user:hidden@localhost", "driver={'type': 'mongodb', 'db_name': ..., 'uri': ...}"),
        ("sqlite:///sessions.db", "driver={'type': 'sql', 'file': ...}"),
        ("sqlite+aiosqlite:///sessions.db", "driver={'type': 'sql', 'file': ...}"),
        ("sqlite3", "driver={'type': 'sql'}"),
        ("sessions.db", "driver={'type': 'sql', 'file': ...}"),
        ("/var/lib/shop/sessions", "driver={'type': 'file', 'dir': ...}"),
        ("file:///var/lib/shop", "driver={'type': 'file', 'dir': ...}"),
        ("valkey://:hidden@localhost", "driver={'type': 'redis', 'url': ...}"),
        ("unix:///run/redis.sock", "driver={'type': 'redis', 'url': ...}"),
        ("memory://", "driver={'type': 'memory'}"),
        ("postgresql+asyncpg://user:hidden@localhost/shop", "no driver for postgresql; the types are cookies, memory, "),
        ("memcached://localhost", "no driver for memcached; the types are cookies, memory, "),
        ("postgres", "no driver for postgres; the types are cookies, memory, "),
        ({"type": "postgresql"}, "there is no such driver; the types are cookies, memory, "),
        ({"type": "sqlite"}, "no such driver; the types are cookies, memory, file, redis, sql, mongodb; did you mean 'sql'?"),
        ("a hidden secret in the wrong place", "a dict with a type"),
        (["redis://:hidden@localhost"], "a dict with a type"),
        ({"type": "redis://:hidden@localhost"}, "the types are"),
        ({"type": ["redis://:hidden@localhost"]}, "the types are"),
    ],
)
def test_a_driver_that_is_refused_shows_no_password(driver: Any, fix: str) -> None:
    reason = refusal(driver=driver)
    assert "hidden" not in reason
    assert fix in reason


@pytest.mark.parametrize("driver", ["memory", "", 5, [], object(), ("type", "memory")], ids=lambda driver: repr(driver)[:12])
def test_an_object_that_is_not_a_driver_is_refused(driver: Any) -> None:
    assert "driver" in refusal(driver=driver)


def test_a_driver_class_is_refused_because_a_driver_is_an_instance() -> None:
    assert "MemoryDriver" in refusal(driver=MemoryDriver)


@pytest.mark.parametrize(
    "missing", ["name", "shared", "open", "close", "load", "create", "apply", "swap", "rename", "destroy", "purge"]
)
def test_a_driver_that_lacks_a_member_is_refused_with_its_name(missing: str) -> None:
    driver = type("Partial", (), {name: value for name, value in vars(MemoryDriver).items() if name[0] != "_" and name != missing})
    assert missing in refusal(driver=driver())


# The cookie's name, and combinations of options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "__Host-Http-gaman"),
        ({"same_site": "strict"}, "__Host-Http-gaman"),
        ({"partitioned": True}, "__Host-Http-gaman"),
        ({"driver": {"type": "memory"}}, "__Host-Http-gaman"),
        ({"secure": False}, "gaman"),
        ({"secure": False, "path": "/app"}, "gaman"),
        ({"path": "/app"}, "__Secure-gaman"),
        ({"domain": "example.com"}, "__Secure-gaman"),
        ({"domain": "example.com", "path": "/app"}, "__Secure-gaman"),
        ({"cookie_name": "sid"}, "sid"),
        ({"cookie_name": "__Secure-sid", "domain": "example.com"}, "__Secure-sid"),
        ({"cookie_name": "__Host-sid"}, "__Host-sid"),
        ({"cookie_name": "__Http-sid", "domain": "example.com", "path": "/app"}, "__Http-sid"),
        ({"cookie_name": "__Host-Http-sid"}, "__Host-Http-sid"),
    ],
    ids=str,
)
async def test_the_name_of_the_cookie_is_the_option_or_follows_from_its_attributes(
    fetch: Fetch, options: dict[str, Any], name: str
) -> None:
    assert (await set_cookie(fetch, integrate(**options))).partition("=")[0] == name


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"cookie_name": "__Host-sid", "secure": False}, "secure=True"),
        ({"cookie_name": "__Host-sid", "path": "/app"}, "path is '/'"),
        ({"cookie_name": "__Host-sid", "domain": "example.com"}, "domain None"),
        ({"cookie_name": "__host-sid", "domain": "example.com"}, "domain None"),
        ({"cookie_name": "__HOST-sid", "secure": False}, "secure=True"),
        ({"cookie_name": "__Host-Http-sid", "path": "/app"}, "path is '/'"),
        ({"cookie_name": "__host-HTTP-sid", "domain": "example.com"}, "domain None"),
        ({"cookie_name": "__hTTp-sid", "secure": False}, "secure=True"),
        ({"cookie_name": "__Secure-sid", "secure": False}, "secure=True"),
        ({"cookie_name": "__secure-sid", "secure": False}, "secure=True"),
        ({"same_site": "none", "secure": False}, "secure=True"),
        ({"partitioned": True, "secure": False}, "secure=True"),
    ],
    ids=str,
)
def test_a_combination_that_browsers_refuse_is_refused_at_start_up(options: dict[str, Any], fix: str) -> None:
    reason = refusal(**options)
    assert "browsers drop the cookie" in reason
    assert fix in reason


def test_a_cookie_is_always_encrypted() -> None:
    for driver in (None, {"type": "cookies"}):
        reason = refusal(driver=driver, encrypt=False)
        assert "encrypt=False" in reason
        assert "another driver" in reason
    integrate(driver={"type": "memory"}, encrypt=False)


async def test_the_options_can_be_given_by_position_in_the_seeds_order(fetch: Fetch) -> None:
    line = await set_cookie(fetch, session(SECRET, {"type": "cookies"}, 60, False))
    assert line.endswith("; Max-Age=60; Path=/; HttpOnly; SameSite=Lax")
    assert line.startswith("gaman=")


async def test_ctx_session_is_a_session(fetch: Fetch) -> None:
    async def handle(ctx: Context) -> str:
        return str(isinstance(ctx.session, Session))

    app = App({"/": handle}, integrations=[integrate()])
    await app.load()
    assert (await fetch(app)).text == "True"
    await app.shutdown()


def test_an_empty_key_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", " ")
    with pytest.raises(ConfigError, match=r"session\(\): GAMAN_KEY in the environment is empty; run `gaman key` to make one"):
        session()
