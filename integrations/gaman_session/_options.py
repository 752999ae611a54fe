"""The options of session(), checked before anything is opened; ConfigError names an invalid option and its fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, cast

from msgspec import Struct

from gaman import ConfigError, Cookies, HeaderError, SameSite
from gaman.errors import a_type, nearest
from gaman_session._audit import OnEvent
from gaman_session._cross_site import check_origins
from gaman_session._driver import Driver, supports_owners
from gaman_session._ended_store import MAX_COOKIE_AGE
from gaman_session._errors import SessionUnsupported
from gaman_session._login_list import MAX_SESSIONS
from gaman_session._option_hints import TYPES, instead_of_option, instead_of_text
from gaman_session._serializer import CODECS, Codec, Serializer, custom
from gaman_session._sessions import MAX_LIFETIME
from gaman_session.drivers import DRIVERS, find_driver
from gaman_session.drivers._checks import check_whole_number

_MIN_SECRET = 32
# The secrets of examples. Fewer than one random key in a billion contains one of these.
_find_placeholder = re.compile("change.?(me|this|it)|(your|my|super|top).?secret|password|insecure", re.IGNORECASE).search
_CHOICES = {"same_site": ": 'lax', 'strict' or 'none'"}
_DRIVER_MEMBERS = ("name", "shared", "open", "close", "load", "create", "apply", "swap", "rename", "destroy", "purge")


class CookieOptions(Struct, frozen=True):
    """The cookie's name and attributes."""

    name: str
    path: str
    domain: str | None
    secure: bool
    same_site: SameSite
    partitioned: bool

    @property
    def slot(self) -> str:
        """The identity of this cookie in a browser (RFC 6265bis, section 5.7): its name, and attributes that aren't the default."""
        domain = "" if self.domain is None else f"; Domain={self.domain.removeprefix('.').lower()}"
        path = "" if self.path == "/" else f"; Path={self.path}"
        return f"{self.name}{domain}{path}{'; Partitioned' if self.partitioned else ''}"

    def line(self, max_age: int) -> bytes:
        """Return the Set-Cookie line of an empty cookie. HeaderError: browsers would refuse it."""
        cookies = Cookies()
        cookies.set(
            self.name,
            "",
            max_age=max_age,
            path=self.path,
            domain=self.domain,
            secure=self.secure,
            http_only=True,
            same_site=self.same_site,
            partitioned=self.partitioned,
        )
        [(_, line)] = cookies.fields()
        return line


class Options(Struct, frozen=True):
    """The options of session(), complete and consistent."""

    secrets: Sequence[str]
    driver: Driver | None
    """None if the cookie holds the session."""
    ended: Driver | None
    """The store of ended sessions; None if there is none, or sessions are in a store."""
    max_age: int
    idle_timeout: int | None
    max_size: int
    encrypt: bool
    codec: Codec
    max_sessions_per_owner: int | None
    browser_session: bool
    on_event: OnEvent | None
    trusted_origins: frozenset[str] | None
    """Normalized; None with csrf=False."""
    cookie: CookieOptions
    warnings: Sequence[str]
    """About options that are allowed but unwise; logged at start-up."""

    def __repr__(self) -> str:
        # Leaves out the secrets.
        return f"{type(self).__name__}(cookie={self.cookie!r})"


def check(
    secret: str | Sequence[str] | None,
    driver: Mapping[str, Any] | Driver | None,
    max_age: int,
    secure: bool,
    *,
    idle_timeout: int | None,
    cookie_name: str | None,
    same_site: SameSite,
    domain: str | None,
    path: str,
    partitioned: bool,
    encrypt: bool,
    serializer: str | Serializer | None,
    max_size: int,
    max_sessions_per_owner: int | None,
    browser_session: bool,
    on_event: OnEvent | None,
    csrf: bool,
    trusted_origins: str | Iterable[str],
) -> Options:
    """Return the options, or raise ConfigError for the first invalid one."""
    secrets = _secrets(secret)
    _check_seconds("max_age", max_age)
    if idle_timeout is not None:
        _check_seconds("idle_timeout", idle_timeout)
        if idle_timeout > max_age:
            raise ConfigError(
                f"session(idle_timeout={idle_timeout}): max_age={max_age} ends every session before; "
                "write a smaller idle_timeout, or leave it out"
            )
    check_whole_number(max_size, f"session(max_size={max_size!r}):", "a whole number of bytes above 0")
    switches = {"secure": secure, "partitioned": partitioned, "encrypt": encrypt, "browser_session": browser_session, "csrf": csrf}
    _check_type("True or False", bool, **switches)
    if on_event is not None and not _takes_one(on_event):
        raise ConfigError(f"session(on_event={on_event!r}): it takes a function of one event, plain or async, or None")
    _check_type("text", str, path=path, same_site=same_site)
    _check_type("text, or None", (str, type(None)), cookie_name=cookie_name, domain=domain)
    if cookie_name is None:
        is_host_only = path == "/" and domain is None
        cookie_name = ("__Host-Http-gaman" if is_host_only else "__Secure-gaman") if secure else "gaman"
    cookie = CookieOptions(cookie_name, path, domain, secure, same_site, partitioned)
    try:
        cookie.line(max_age)
    except HeaderError as cause:
        raise ConfigError(f"session(): {cause}") from cause
    driver, ended = _ended(driver)
    made = _driver(driver)
    if not encrypt and made is None:
        raise ConfigError("session(encrypt=False): a cookie is always encrypted; leave encrypt out, or choose another driver")
    warnings = [warning for each in secrets if (warning := _weakness(each))]
    if max_age > MAX_COOKIE_AGE:
        warnings.append(f"session(max_age={max_age}): browsers keep no cookie longer than 400 days, {MAX_COOKIE_AGE} seconds")
    if ended is not None and not ended.shared:
        warnings.append(
            f"the option 'ended' of the cookies driver: {ended.name} forgets ended sessions when this process ends, and copies of "
            "their cookies then work again; choose file, sql, redis or mongodb"
        )
    _check_max_sessions(max_sessions_per_owner, made, ended)
    codec = _codec(serializer, encrypt)
    origins = check_origins(trusted_origins)
    if origins and not csrf:
        raise ConfigError("session(csrf=False): without the check, every origin is trusted; remove trusted_origins, or csrf=False")
    return Options(
        secrets,
        made,
        ended,
        max_age,
        idle_timeout,
        max_size,
        encrypt,
        codec,
        max_sessions_per_owner,
        browser_session,
        on_event,
        origins if csrf else None,
        cookie,
        warnings,
    )


def instead_of(option: str) -> str:
    """Return what to write in place of an *option* that session() doesn't have, or "" if that isn't known."""
    return instead_of_option(option, signature(check).parameters)


def instead_in_middleware(option: str) -> str:
    """Return what to write in place of an *option* that SessionMiddleware doesn't have, or "" if that isn't known."""
    return instead_of_option(option, signature(check).parameters, "sessions=session({})")


def _secrets(secret: str | Sequence[str] | None) -> Sequence[str]:
    if secret is None:
        secret = os.environ.get("GAMAN_KEY")
        if secret is not None and not secret.strip():
            raise ConfigError("session(): GAMAN_KEY in the environment is empty; run `gaman key` to make one")
    if secret is None:
        raise ConfigError(
            "session() has no secret: run `gaman key --env .env`, then `gaman serve --env-file .env main:app`; "
            "or, for a script, `export GAMAN_KEY=$(gaman key)`"
        )
    if isinstance(secret, Mapping):
        raise ConfigError("session(): the first argument is the secret; write session(driver={...})")
    if not isinstance(secret, (str, list, tuple)):
        raise ConfigError("session(): a secret is a string, or a list of them with the newest first; `gaman key` makes one")
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not secrets:
        raise ConfigError("session(secret=[]): the list of secrets is empty; put the newest first, `gaman key` makes one")
    for each in secrets:
        if not isinstance(each, str) or not each.strip() or not each.isprintable():
            raise ConfigError("session(): a secret is empty, or isn't printable text; run `gaman key` to make one")
    return secrets


def _weakness(secret: str) -> str | None:
    """Return why *secret* can be guessed, or None if it looks random."""
    if (size := len(secret.encode())) < _MIN_SECRET:
        return f"a session secret of {size} bytes can be guessed; make one of at least {_MIN_SECRET} with `gaman key`"
    pairs = set(pairwise(secret))
    steps = {ord(after) - ord(before) for before, after in pairs}
    # Few distinct pairs mean repetition, and few distinct steps a sequence. A long random secret of few characters repeats
    # pairs too, but has many distinct ones.
    if len(pairs) <= min(len(secret) // 2, 48) or len(steps) < 8:
        return "a session secret that follows a pattern can be guessed; make one with `gaman key`"
    if _find_placeholder(secret):
        return "a session secret with the words of an example can be guessed; make one with `gaman key`"
    return None


def _check_type(what: str, kind: type | tuple[type, ...], **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ConfigError(f"session({name}={value!r}): it takes {what}{_CHOICES.get(name, '')}")


def _takes_one(function: object) -> bool:
    """Return whether *function* can be called with one argument, as far as Python knows."""
    try:
        signature(cast("Callable[..., object]", function)).bind(None)
    except TypeError:
        return False
    except ValueError:
        # Some functions in C have no signature.
        pass
    return callable(function)


def _check_seconds(name: str, value: object) -> None:
    check_whole_number(
        value, f"session({name}={value!r}):", "a whole number of seconds above 0, and below a thousand years", maximum=MAX_LIFETIME
    )


def _check_max_sessions(value: object, driver: Driver | None, ended: Driver | None) -> None:
    if value is None:
        return
    check_whole_number(value, f"session(max_sessions_per_owner={value!r}):", "a whole number above 0, or None")
    if ended is None and not supports_owners(driver):
        raise ConfigError(
            f"session(max_sessions_per_owner={value}): {SessionUnsupported('cookies' if driver is None else driver.name)}"
        )
    if ended is not None and cast("int", value) > MAX_SESSIONS:
        raise ConfigError(
            f"session(max_sessions_per_owner={value}): a list of sessions in cookies holds {MAX_SESSIONS} for certain; write at "
            "most that, or choose a driver that keeps sessions"
        )


def _ended(driver: Mapping[str, Any] | Driver | None) -> tuple[Mapping[str, Any] | Driver | None, Driver | None]:
    """Return *driver* without its option `ended`, and the store that this names, if sessions are in cookies."""
    if not isinstance(driver, Mapping) or driver.get("type") != "cookies" or "ended" not in driver:
        return driver, None
    given: Any = driver["ended"]
    if not isinstance(given, Mapping) and not hasattr(given, "load"):
        raise ConfigError(
            "the option 'ended' of the cookies driver takes a dict with the type of a store; "
            "write session(driver={'type': 'cookies', 'ended': {'type': 'sql'}})"
        )
    try:
        ended = _driver(cast("Mapping[str, Any] | Driver", given))
    except ConfigError as error:
        raise ConfigError(f"the option 'ended' of the cookies driver is a driver too: {error}") from error
    if ended is None:
        raise ConfigError(
            f"the option 'ended' of the cookies driver is a store, and cookies can't be one; choose {', '.join(DRIVERS)}"
        )
    return {name: value for name, value in driver.items() if name != "ended"}, ended


def _driver(driver: Mapping[str, Any] | Driver | None) -> Driver | None:
    if driver is None:
        return None
    if isinstance(driver, str):
        # Text that isn't a driver's name stays out of the message, because it may be a URL with a password, or a secret.
        shown = repr(driver) if driver in TYPES else "..."
        raise ConfigError(f"session(driver={shown}): {instead_of_text(driver)}")
    if not isinstance(driver, Mapping):
        missing = [name for name in _DRIVER_MEMBERS if not hasattr(driver, name)]
        if missing or isinstance(driver, type):
            # Its repr stays out of the message, because it may contain a password.
            given = f"the class {driver.__name__}" if isinstance(driver, type) else a_type(driver)
            takes = "it takes a dict with a type, or a Driver object"
            raise ConfigError(f"session(driver=...): {takes}; {given} has no {', '.join(missing) or 'instance'}")
        return driver
    settings = dict(driver)
    kind = settings.pop("type", None)
    factory: Callable[..., Driver] | None = None
    known: Mapping[str, Parameter] = {}
    if isinstance(kind, str) and kind in DRIVERS:
        factory = find_driver(kind)
        known = signature(factory).parameters
    elif kind != "cookies":
        takes = f"the types are {', '.join(TYPES)}"
        if "type" not in driver:
            raise ConfigError(f"session(driver=...): the dict has no 'type'; {takes}")
        shown = "..." if "://" in str(kind) else repr(kind)
        raise ConfigError(f"session(driver={{'type': {shown}}}): there is no such driver; {takes}{nearest(kind, TYPES)}")
    for name in settings:
        if name not in known:
            takes = f"it takes {', '.join(known) or 'ended'}"
            raise ConfigError(f"the {kind} driver has no option {name!r}; {takes}{nearest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is Parameter.empty and name not in settings:
            raise ConfigError(f"the {kind} driver needs {name}; write driver={{'type': {kind!r}, {name!r}: ...}}")
    return None if factory is None else factory(**settings)


def _codec(serializer: str | Serializer | None, encrypt: bool) -> Codec:
    if serializer is None:
        return CODECS["msgpack" if encrypt else "json"]
    if isinstance(serializer, str):
        if serializer not in CODECS:
            takes = f"it takes {', '.join(CODECS)}, or an object"
            raise ConfigError(f"session(serializer={serializer!r}): {takes}{nearest(serializer, CODECS)}")
        return CODECS[serializer]
    if not callable(getattr(serializer, "encode", None)) or not callable(getattr(serializer, "decode", None)):
        raise ConfigError(f"session(serializer={serializer!r}): it needs the methods encode(value) and decode(data, type)")
    return custom(serializer)
