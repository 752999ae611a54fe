"""The errors of a session that is used as a dict, and of an update() that can't work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gaman.errors import a_type
from gaman_session._errors import SessionUseError

T = TypeVar("T")


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
