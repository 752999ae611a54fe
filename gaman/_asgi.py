"""The types of ASGI 3."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
# Any, because libraries have their own types of scopes and messages.
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
STOPPING: Final = "gaman.stopping"
"""The key of gaman's server in a scope: an asyncio.Event that is set when the server begins to stop."""
