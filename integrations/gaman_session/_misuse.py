"""NotADict: the errors of a session that is used as a dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gaman_session._errors import SessionUseError


def key_error(call: str, key: object, more: str = "") -> SessionUseError:
    """Return the error for a key that isn't text."""
    return SessionUseError(f"a session's key is a str, not {key!r}: write `await ctx.session.{call}({str(key)!r}{more})`")


class NotADict:
    """Raises SessionUseError, which names the call to use, for everything that a dict does. Type checkers see no such methods."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.get({key!r})`")

        def __setitem__(self, key: object, value: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.set({key!r}, ...)`")

        def __delitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.delete({key!r})`")

        def __contains__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.has({key!r})`")

        def __iter__(self) -> NoReturn:
            raise SessionUseError("a session isn't a dict: write `await ctx.session.all()`")

        def __len__(self) -> NoReturn:
            raise SessionUseError("a session isn't a dict: write `len(await ctx.session.all())`")

        def __bool__(self) -> NoReturn:
            raise SessionUseError("a session is there for every visitor: write `await ctx.session.has(...)`")
