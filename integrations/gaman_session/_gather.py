"""gather: asyncio.gather(), imported by its first call, because asyncio takes 20 ms to load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["gather"]

if TYPE_CHECKING:
    from asyncio import gather
else:

    def gather(*work: Any, **options: Any) -> Any:
        from asyncio import gather  # noqa: PLC0415 - see above

        return gather(*work, **options)
