"""gather: asyncio.gather(), whose module takes 20 ms to load, so that the first call loads it: a server has done so before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["gather"]

if TYPE_CHECKING:
    from asyncio import gather
else:

    def gather(*work: Any, **options: Any) -> Any:
        from asyncio import gather  # noqa: PLC0415 - see above

        return gather(*work, **options)
