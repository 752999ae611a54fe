"""Scan: reads the keys of a Redis server, a page at a time, to count sessions and to find owners' sets, which no index has."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, cast

from gaman_session.drivers._redis_failures import CONNECTION_FAILURES, PAUSE, CallError

# Keys in a page. Other calls wait less than a millisecond for so many.
_PAGE: Final = 200
# Calls of expiring() that scan all keys together.
_PARTS: Final = 60

_LOOK: Final = """
local cursor, pattern, page, kind, now = unpack(ARGV)
local found = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', page, 'TYPE', kind)
"""
# A server that is importing a slot lists its keys, but refuses a script that reads them: such a key counts as a session.
_COUNT: Final = f"""{_LOOK}
local count, endings = 0, {{}}
local function min_version(key)
    local name = string.sub(key, 1, -65) .. 'ending'
    if not endings[name] then
        local found = redis.pcall('HMGET', name, 'min_version')
        endings[name] = tonumber(found[1] or '') or 0
    end
    return endings[name]
end
for _, key in ipairs(found[2]) do
    local state = redis.pcall('HMGET', key, 'ended', 'deadline', 'version')
    if state.err then
        count = count + 1
    elseif not state[1] and (tonumber(state[2] or '') or 0) > tonumber(now) then
        if (tonumber(state[3] or '') or 0) >= min_version(key) then count = count + 1 end
    end
end
return {{found[1], count}}
"""
_FIND: Final = f"""{_LOOK}
local expiring = {{}}
for _, key in ipairs(found[2]) do
    local expired = redis.pcall('ZCOUNT', key, '-inf', now)
    if type(expired) == 'number' and expired > 0 then expiring[#expiring + 1] = key end
end
return {{found[1], expiring}}
"""


class Scan:
    """Reads the keys that begin with *prefix*; *ask* returns a server's answer to a command."""

    def __init__(self, prefix: str, ask: Callable[..., Awaitable[Any]]) -> None:
        self._ask = ask
        start = re.sub(r"([*?\[\]\\])", r"\\\1", prefix)
        self._sessions = start + "{???}" + "?" * 64
        self._sets = start + "owner:*"
        # The cursor at which expiring() continues, by server, and the number of keys in each part. Any cursor is valid on any
        # server: at worst it skips some keys.
        self._places: dict[str, tuple[int, int]] = {}

    async def count_all(self, masters: Callable[[], Awaitable[list[Any]]], now: float) -> int:
        """Return how many live sessions all of *masters* have. If one is lost, count again where another takes over."""
        while True:
            results = await asyncio.gather(*(self.count(server, now) for server in await masters()), return_exceptions=True)
            error = next((each for each in results if isinstance(each, BaseException)), None)
            if error is None:
                return sum(cast("list[int]", results))
            if not (isinstance(error, CallError) and isinstance(error.failure, CONNECTION_FAILURES)):
                raise error
            # From the start, because a cursor means nothing to the server that takes over.
            await asyncio.sleep(PAUSE)

    async def count(self, server: Any, now: float) -> int:
        """Return how many live sessions *server* has at *now*; the number is approximate while sessions come and go."""
        cursor, count = 0, 0
        while True:
            cursor, found = await self._page(server, _COUNT, cursor, self._sessions, _PAGE, "hash", repr(now))
            count += int(found)
            if not cursor:
                return count

    async def expiring(self, server: Any, now: float) -> AsyncGenerator[list[str]]:
        """Yield the owners' sets that have expired members, page by page, from the next sixtieth of *server*'s keys."""
        name = getattr(server, "name", "")
        cursor, part = self._places.get(name, (0, 0))
        # A sixtieth of the keys at the scan's beginning: parts of the remaining keys would be ever smaller, and none the last.
        left = part = max(part, await self._ask(server, "DBSIZE") // _PARTS + 1)
        while left > 0:
            page = min(left, _PAGE)
            cursor, keys = await self._page(server, _FIND, cursor, self._sets, page, "zset", repr(now))
            self._places[name], left = (cursor, part) if cursor else (0, 0), left - page if cursor else 0
            # A key that isn't UTF-8 isn't ours.
            yield [key.decode(errors="replace") for key in keys]

    async def _page(self, server: Any, script: str, *arguments: Any) -> tuple[int, Any]:
        """Return the cursor of the next page, 0 after the last one, and the result of *script* for this one."""
        cursor, found = await self._ask(server, "EVAL", script, 0, *arguments)
        return int(cursor), found
