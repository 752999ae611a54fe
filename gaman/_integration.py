"""Integrations: records of hooks and the order in which they run; knows no integration by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields
from inspect import ismodule
from typing import TYPE_CHECKING, Literal

from gaman._context import Context
from gaman._response import Response
from gaman.errors import ConfigError

if TYPE_CHECKING:
    from gaman._app import App

Priority = Literal["very-high", "high", "normal", "low", "very-low"]

_ORDER: tuple[Priority, ...] = ("very-high", "high", "normal", "low", "very-low")


@dataclass(frozen=True, kw_only=True)
class Integration:
    """A name, a priority, and hooks, each of them optional and each either a plain function or an async one.

    The higher priority comes first where a request goes in (`on_load`, `on_request`, `on_error`) and last where it comes out
    (`on_response`, `on_shutdown`): the integrations lie around the handlers like rings.
    """

    name: str
    priority: Priority = "normal"
    on_load: Callable[[App], Awaitable[None] | None] | None = None
    """Runs before the first request is served. What it raises stops the start-up."""
    on_shutdown: Callable[[App], Awaitable[None] | None] | None = None
    """Runs after the last request was served, if this integration's on_load has succeeded."""
    on_request: Callable[[Context], Awaitable[Response | None] | Response | None] | None = None
    """Runs before the handlers; a Response answers at once."""
    on_response: Callable[[Context, Response], Awaitable[Response | None] | Response | None] | None = None
    """Runs before the response is sent, whoever made it, and gives the one to go on with; None stands for the same."""
    on_error: Callable[[Context, Exception], Awaitable[Response | None] | Response | None] | None = None
    """Sees what was raised, an HTTPError as well; the first Response that one of these gives answers."""

    on_purge: Callable[[App], Awaitable[int] | int] | None = None
    """Removes what is over from where this integration keeps things, and returns how much that was; `gaman purge` asks for it."""
    on_check: Callable[[App], Awaitable[None] | None] | None = None
    """Finds out whether this integration can do its work now, and raises what stands in the way; `app.check()` asks for it."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("an integration needs a name, for the errors and logs that it appears in")
        if self.priority not in _ORDER:
            raise ConfigError(f"the integration {self.name!r} has priority={self.priority!r}; it takes one of {', '.join(_ORDER)}")
        for field in fields(self):
            hook = getattr(self, field.name)
            if field.name.startswith("on_") and hook is not None and not callable(hook):
                raise ConfigError(f"{field.name} of the integration {self.name!r} is a {type(hook).__name__}, not a function")


define_integration = Integration
"""Make an Integration; named like define_routes."""


def in_order(integrations: Iterable[Integration]) -> list[Integration]:
    """Return *integrations* by priority, those of one priority as they were listed; ConfigError names what isn't an integration."""
    if isinstance(integrations, str) or not isinstance(integrations, Iterable):
        raise ConfigError(f"integrations is a list, not {_tell(integrations)}")
    integrations, names = tuple(integrations), set[str]()
    for integration in integrations:
        if not isinstance(integration, Integration):
            raise ConfigError(f"integrations holds {_tell(integration)}")
        if integration.name in names:
            raise ConfigError(f"integrations holds two named {integration.name!r}, which would be in each other's way; remove one")
        names.add(integration.name)
    return sorted(integrations, key=lambda integration: _ORDER.index(integration.priority))


def _tell(value: object) -> str:
    """Return what *value* is, which isn't a list of integrations or isn't an integration, and what to write instead."""
    if isinstance(value, Integration):
        return f"the integration {value.name!r} by itself; write integrations=[{value.name}(...)]"
    if isinstance(value, (list, tuple)):
        return "a list; write integrations=[session()], without another list in it"
    if ismodule(value):
        return f"the module {value.__name__}; import the integration from it"
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return f"{name} itself; write integrations=[{name}()]"
    return f"{value!r}; write integrations=[session()], for example, or leave it out"
