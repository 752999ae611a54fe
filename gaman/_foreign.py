"""Foreign names: attributes as other frameworks call them, each refused with what to write here."""

from __future__ import annotations

from typing import NoReturn

from gaman.errors import ConfigError


class ForeignName(ConfigError, AttributeError):
    """An attribute was used by the name that another framework has for it; the message says what to write."""


def foreign(told: str) -> property:
    """Return an attribute that can't be read or set: that raises ForeignName, which says what is *told*."""

    def refuse(*_: object) -> NoReturn:
        raise ForeignName(told)

    return property(refuse, refuse)
