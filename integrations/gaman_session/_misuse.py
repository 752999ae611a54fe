"""The errors of a session that is used as a dict, and of an update() that can't work."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from gaman.errors import a_type
from gaman_session._errors import SessionUseError

T = TypeVar("T")

IN_SCOPE: Final = "gaman.session"
"""The key of an ASGI scope under which SessionMiddleware puts the request's connection."""


def changed(session: NotADict, key: str, fn: Callable[[Any], T], value: Any) -> T:
    """Return `fn(value)`; SessionUseError if *fn* can't take None, or changed a list or a dict in place and returned nothing."""
    try:
        result = fn(value)
    except (TypeError, AttributeError) as cause:
        if value is not None or "NoneType" not in str(cause):
            raise
        raise session._misused(
            f"update({key!r}): the key is missing, so the function got None: give a default, as in "
            f"`await ctx.session.update({key!r}, lambda value: ..., 0)`"
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

    __slots__ = ("_scope",)

    _scope: MutableMapping[str, Any]

    def _spelled(self, text: str) -> str:
        """Return *text* with `session` in place of `ctx.session` if SessionMiddleware made the session; only gaman has a `ctx`."""
        return text.replace("ctx.session", "session") if IN_SCOPE in self._scope else text

    def _misused(self, text: str) -> SessionUseError:
        return SessionUseError(self._spelled(text))

    def _key_error(self, call: str, key: object, more: str = "") -> SessionUseError:
        """Return the error for a key that isn't text, or that only gaman may use."""
        if isinstance(key, str):
            return self._misused(f"only login() writes {key!r}, and `await ctx.session.owner()` reads it; choose another key")
        return self._misused(f"a session's key is a str, not {key!r}: write `await ctx.session.{call}({str(key)!r}{more})`")

    if not TYPE_CHECKING:

        def __getitem__(self, key: object) -> NoReturn:
            raise self._misused(f"a session isn't a dict: write `await ctx.session.get({key!r})`")

        def __setitem__(self, key: object, value: object) -> NoReturn:
            raise self._misused(f"a session isn't a dict: write `await ctx.session.set({key!r}, ...)`")

        def __delitem__(self, key: object) -> NoReturn:
            raise self._misused(f"a session isn't a dict: write `await ctx.session.delete({key!r})`")

        def __contains__(self, key: object) -> NoReturn:
            raise self._misused(f"a session isn't a dict: write `await ctx.session.has({key!r})`")

        def __iter__(self) -> NoReturn:
            raise self._misused("a session isn't a dict: write `await ctx.session.all()`")

        def __len__(self) -> NoReturn:
            raise self._misused("a session isn't a dict: write `len(await ctx.session.all())`")

        def __bool__(self) -> NoReturn:
            raise self._misused("a session is there for every visitor: write `await ctx.session.has(...)`")
