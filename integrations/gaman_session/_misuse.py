"""The errors of a session that is used as a dict, or by a name that it doesn't have, and of an update() that can't work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from gaman.errors import a_type
from gaman_session._errors import SessionAttributeError, SessionUseError

T = TypeVar("T")

OF_SESSION: Final = {
    name: fix
    for names, fix in (
        ("end_all end_everyone list count", "write `await sessions.{1}(...)`, on what session() has returned"),
        ("end flush destroy invalidate", "write `await {0}.logout()`"),
        ("cycle_key rotate renew new_id", "write `await {0}.regenerate()`"),
        ("session_key session_id sid", "write {0}.id"),
        ("new", "write {0}.is_new"),
        ("permanent set_expiry max_age", "write `await {0}.login(owner, max_age=...)`"),
        ("modified accessed", "a `set` is written by itself"),
        ("keys values items setdefault", "write `await {0}.all()`"),
    )
    for name in names.split()
}
"""What to write for attributes that what session() returns has, or that sessions have elsewhere."""


def of_sessions(cls: type) -> dict[str, str]:
    """Return what to write for attributes that the session of a request has, an object of *cls*."""
    calls = {name: callable(getattr(cls, name)) for name in dir(cls) if name[0] != "_"}
    return {
        name: "write `await ctx.session.{1}(...)`, on the session of a request" if is_call else "write ctx.session.{1}"
        for name, is_call in calls.items()
    }


class _Elsewhere:
    """An attribute that raises SessionAttributeError with the *fix*, whose `{0}` is the object and `{1}` the attribute."""

    def __init__(self, name: str, fix: str) -> None:
        self._name = name
        self._fix = fix

    def __get__(self, thing: Any, cls: type) -> Any:
        return self if thing is None else self._raise(thing)

    def __set__(self, thing: Any, value: object) -> None:
        self._raise(thing)

    def _raise(self, thing: Any) -> NoReturn:
        name = getattr(thing, "_name", "sessions")
        raise SessionAttributeError(f"{name} has no {self._name!r}: {self._fix.format(name, self._name)}")


def explain_missing(cls: type, fixes: Mapping[str, str]) -> None:
    """Have each attribute that *cls* lacks raise an error with its fix. Type checkers see none of them."""
    for name, fix in fixes.items():
        if not hasattr(cls, name):
            setattr(cls, name, _Elsewhere(name, fix))


def changed(session: NotADict, key: str, fn: Callable[[Any], T], value: Any) -> T:
    """Return `fn(value)`; SessionUseError if *fn* can't take None, or changed a list or a dict in place and returned nothing."""
    try:
        result = fn(value)
    except (TypeError, AttributeError) as cause:
        if value is not None or "NoneType" not in str(cause):
            raise
        raise SessionUseError(
            f"update({key!r}): the key is missing, so the function got None: give a default, as in "
            f"`await {session._name}.update({key!r}, lambda value: ..., 0)`"
        ) from cause
    if result is None and isinstance(value, (list, dict)):
        kind = a_type(value)  # pyright: ignore[reportUnknownArgumentType]
        raise SessionUseError(
            f"update({key!r}): the function returned None for {kind}: have it return the new value, as in "
            "`lambda cart: [*cart, item]`"
        )
    return result


class NotADict:
    """Raises SessionUseError, which names the call to use, for everything that a dict does. Type checkers see no such methods."""

    __slots__ = ()

    _name: str

    def _key_error(self, call: str, key: object, more: str = "") -> SessionUseError:
        """Return the error for a key that isn't text, or that only gaman may use."""
        if isinstance(key, str):
            return SessionUseError(f"only login() writes {key!r}, and `await {self._name}.owner()` reads it; choose another key")
        return SessionUseError(f"a session's key is a str, not {key!r}: write `await {self._name}.{call}({str(key)!r}{more})`")

    if not TYPE_CHECKING:

        def __getitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await {self._name}.get({key!r})`")

        def __setitem__(self, key: object, value: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await {self._name}.set({key!r}, ...)`")

        def __delitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await {self._name}.delete({key!r})`")

        def __contains__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await {self._name}.has({key!r})`")

        def __iter__(self) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await {self._name}.all()`")

        def __len__(self) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `len(await {self._name}.all())`")

        def __bool__(self) -> NoReturn:
            raise SessionUseError(f"a session is there for every visitor: write `await {self._name}.has(...)`")
