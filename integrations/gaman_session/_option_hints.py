"""What to write in place of options that other frameworks' sessions have, and of a store's URL."""

from __future__ import annotations

import re
from collections.abc import Container
from difflib import get_close_matches
from typing import Final

from gaman_session.drivers import DRIVERS

TYPES: Final = ("cookies", *DRIVERS)
"""The values of a driver's `type`."""

_OPTIONS = {
    name: instead
    for names, instead in (
        ("secret_key key keys password", "secret=..."),
        ("session_cookie cookie name", "cookie_name=..."),
        ("https_only", "secure=..."),
        ("age lifetime ttl expires permanent_session_lifetime", "max_age=..."),
        ("rolling refresh_each_request save_every_request renew_on_access", "idle_timeout=..."),
        ("expire_at_browser_close permanent", "browser_session=..."),
        ("samesite", "same_site=..."),
        ("csrf_trusted_origins allowed_origins", "trusted_origins=..."),
        ("type", "driver={'type': ...}"),
        ("ended", "driver={'type': 'cookies', 'ended': {'type': ...}}"),
        ("engine store backend interface", "driver={'type': 'redis'}, or another type"),
        ("redis redis_url url", "driver={'type': 'redis', 'url': ...}"),
        ("mongodb mongo_url uri", "driver={'type': 'mongodb', 'db_name': ..., 'uri': ...}"),
        ("file file_path dir file_dir", "driver={'type': 'file', 'dir': ...}"),
        ("httponly http_only", "the cookie is always HttpOnly"),
        ("resave save_uninitialized", "only changes are written, and an empty session isn't stored"),
        ("as_dict allow_cross_site", "that is an option of SessionMiddleware"),
    )
    for name in names.split()
}
"""What to write in place of options of Starlette, Flask, Django, Express and others; without a prefix, in lower case."""

_STORES = {
    **{name: name for name in TYPES},
    "cookie": "cookies",
    "mem": "memory",
    "filesystem": "file",
    "sqlite": "sql",
    "sqlite3": "sql",
    "mongo": "mongodb",
    **dict.fromkeys(["rediss", "valkey", "valkeys", "unix"], "redis"),
}
"""The types of drivers by a store's name, or the scheme of its URL."""
_ADDRESSES = {"file": "'dir': ...", "redis": "'url': ...", "sql": "'file': ...", "mongodb": "'db_name': ..., 'uri': ..."}
_WITHOUT_DRIVER = ["postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "memcached", "memcache", "dynamodb"]
_find_humps = re.compile("(?<=[a-z])(?=[A-Z])").sub


def instead_of_option(given: str, known: Container[str], form: str = "{}") -> str:
    """Return what to write in place of the option *given*, if that is known; *form* has the place of session()'s option."""
    name = _find_humps("_", given).lower()
    rest = re.sub("^(session_)?(cookie_)?", "", name)
    fix = _OPTIONS.get(name) or (f"{rest}=..." if rest in known else _OPTIONS.get(rest))
    if fix is None:
        return ""
    return f"; write {form.format(fix)}" if "=" in fix else f"; {fix}"


def instead_of_text(driver: str) -> str:
    """Return what to write in place of a *driver* that is text: a name, a URL or a path. It may hold a password or a secret."""
    scheme, mark, _ = driver.partition("://")
    store = scheme.partition("+")[0].lower()
    if store in _WITHOUT_DRIVER:
        return f"there is no driver for {store}; the types are {', '.join(TYPES)}"
    kind = _STORES.get(store)
    if kind is None and driver.endswith((".db", ".sqlite", ".sqlite3")):
        kind, mark = "sql", "/"
    elif kind is None and driver.startswith(("/", "./", "~/")):
        kind, mark = "file", "/"
    elif kind is None and not mark:
        kind = next(iter(get_close_matches(driver, TYPES, 1)), None)
    options = f", {_ADDRESSES[kind]}" if mark and kind in _ADDRESSES else ""
    return f"it takes a dict with a type, not text; write driver={{'type': {kind or '...'!r}{options}}}"
