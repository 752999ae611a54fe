"""KeyValueDriver: the base class of a driver for any store that keeps bytes under keys and has a lock."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from hashlib import blake2b
from typing import Final, Literal, TypeVar, cast

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder

from gaman_session import _rules
from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Outcome, Ownership, Record
from gaman_session._gather import gather
from gaman_session._rules import NEVER, Ending, Store, Stored, next_ending
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._encoding import decode, decode_ending, encode, encode_ending, protect, verify
from gaman_session.drivers._reports import reports
from gaman_session.drivers._transactions import TransactionDriver

T = TypeVar("T")

_OWNER: Final = "owner."
"""The beginning of an owner's key."""
_ENDING: Final = "ending"
"""The key of the last end_everyone(). Any other key is a session's id."""
_FOREVER: Final = 1000 * 365 * 86_400
"""Seconds for which the ending is stored, as long as the longest session. A store may not know a time that never comes."""


class KeyValueDriver(TransactionDriver):
    """A whole driver for a store that keeps bytes under keys, owners included: derive a class with four methods and a lock.

    Set `name`, and `shared`, which says whether several processes that open it see the same sessions. Write get(), put(), delete(),
    keys() and lock(), and open() and close() if the store needs them. Any exception that they raise becomes the cause of a
    SessionStoreError. A call of the contract takes at most *timeout* seconds.

        class DictDriver(KeyValueDriver):
            name = "dict"
            shared = False

            def __init__(self):
                super().__init__()
                self._items, self._lock = {}, asyncio.Lock()

            async def get(self, key):
                return self._items[key][0] if key in self._items else None

            async def put(self, key, data, expires):
                self._items[key] = data, expires

            async def delete(self, key):
                self._items.pop(key, None)

            async def keys(self, before):
                for key in [key for key, (_, expires) in self._items.items() if expires <= before]:
                    yield key

            def lock(self, keys):
                return self._lock

    A key has at most 64 characters: ASCII letters, digits and points. It is a session's id, stands for an owner, or is `ending`. A
    session is written as a whole. The store must lose nothing before it expires: if it evicts an owner, end_owned() misses its
    sessions, and if it evicts `ending`, the sessions that end_everyone() ended live again.

    A derived class can use any names of its own, except `_limit`, `_failures`, `_explain`, `_report` and `_transact`.
    """

    shared: bool
    # Any exception, because only the derived class knows what its store's library raises.
    _failures = (Exception,)

    def __init__(self, *, timeout: float = 5) -> None:
        from gaman_session.drivers._time_limit import TimeLimit  # noqa: PLC0415 - loads asyncio

        check_timeout(self.name, timeout)
        self.__timeout = timeout
        self._limit = TimeLimit(timeout)
        self.__damage = Damage(self.name)

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        if isinstance(error, TimeoutError) and not error.args:
            error = TimeoutError(f"the store did not answer for {self.__timeout} seconds")
        return "", error

    # The store

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """Return the bytes under *key*, or None.

        load() holds no lock, and gets two keys at the same time. While a put() is in flight, return the old bytes or the new ones.
        """

    @abstractmethod
    async def put(self, key: str, data: bytes, expires: float) -> None:
        """Store the bytes under *key*, and replace others. The store may remove them at *expires*, in seconds since the epoch."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove the key if it is there."""

    @abstractmethod
    def keys(self, before: float) -> AsyncIterator[str]:
        """Yield the keys with `expires <= before`, and all keys for math.inf.

        A store that removes expired keys by itself has none to yield.
        """

    @abstractmethod
    def lock(self, keys: Sequence[str]) -> AbstractAsyncContextManager[object]:
        """Return an asynchronous context manager that excludes other holders of these keys, in all processes that share the store.

        It may lock the whole store, or be a transaction. Locks of single keys don't deadlock if they are taken in this order.
        After an exception in its body, what put() and delete() did there may stay or be rolled back.
        """

    async def open(self) -> None:
        """Prepare the store. An exception stops the start-up."""

    async def close(self) -> None:
        """Release what open() has opened."""

    # The contract

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        stored, ending = await gather(self.__get(id), self.__get_ending())
        return _rules.load(stored, now, ending)

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove expired sessions and tombstones."""
        return sum([await self.__purge(key, now) for key in await self.__expired(now, limit)])

    @reports("list the sessions of an owner")
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions by their ids."""
        ids, ending = (await self.__get_owner(owner)).sessions, await self.__get_ending()
        found = {id: record for id in ids if (record := _rules.owned(await self.__get(id), owner, now, ending)) is not None}
        await self.__prune(owner, ids.keys() - found.keys(), now)
        return found

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*, one by one."""

        async def end(ids: list[str]) -> list[str | bool]:
            return [await self.__end_owned(id, owner, now) for id in ids]

        return await _rules.end_all_owned(await self.__revoke(owner, now), end, keep=keep)

    @reports("end all sessions")
    async def end_everyone(self, *, now: float) -> None:
        """End every session, by writing one key."""
        async with self.lock([_ENDING]):
            await self.put(_ENDING, encode_ending(next_ending(await self.__get_ending(), now)), now + _FOREVER)

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are; this reads every session."""
        ids = [key async for key in self.keys(math.inf) if key != _ENDING and not key.startswith(_OWNER)]
        ending = await self.__get_ending()
        return sum([isinstance(_rules.find(await self.__get(id), now, ending), Record) for id in ids])

    # Each of these steps has the whole timeout, because a purge or an owner may have many.

    @reports("remove expired sessions")
    async def __expired(self, now: float, limit: int) -> list[str]:
        found: list[str] = []
        async for key in self.keys(now):
            if key != _ENDING:
                found.append(key)
            if len(found) == limit:
                break
        return found

    @reports("remove expired sessions")
    async def __purge(self, key: str, now: float) -> bool:
        """Remove what is stored under *key* unless its deadline has moved; return whether that was a session or a tombstone."""
        async with self.lock([key]):
            if key.startswith(_OWNER):
                if (await self.__get_owner_at(key)).expires() <= now:
                    await self.delete(key)
                return False
            stored = await self.__get(key)
            if stored is not None and not _rules.has_expired(stored, now):
                return False
            await self.delete(key)
            return True

    @reports("end the sessions of an owner")
    async def __revoke(self, owner: str, now: float) -> list[str]:
        """Store that the owner's sessions are ended; return the ids of those sessions, and maybe of others."""
        async with self.lock([_key(owner)]):
            sessions = await self.__get_owner(owner)
            sessions.revoked = _rules.revoked_at(sessions.revoked, now)
            await self.__put_owner(owner, sessions, now)
        return [*sessions.sessions]

    @reports("end the sessions of an owner")
    async def __end_owned(self, id: str, owner: str, now: float) -> str | bool:
        return await self._transact(lambda store: store.end_owned(id, owner, now=now), id, now=now)

    # Reading and writing

    async def _transact(self, change: Callable[[_Store], T], *ids: str, now: float, ownership: Ownership | None = None) -> T:
        """Return the result of *change*, which changes the sessions *ids*, after its changes are stored."""
        async with self.lock(sorted({*ids} if ownership is None else {*ids, _key(ownership.owner)})):
            owner = _Owner() if ownership is None else await self.__get_owner(ownership.owner)
            stored = {id: await self.__get(id) for id in ids}
            # After the sessions: if one of them began after an end_everyone(), that one is known.
            store = _Store(self.name, stored, owner, await self.__get_ending())
            result = change(store)
            if store.added and ownership is not None:
                await self.__put_owner(ownership.owner, owner, now)
            for id, changed in store.changed.items():
                await self.put(id, encode(id, changed), changed.deadline)
        # After the lock, because the owner before isn't known when the lock is taken.
        for owner_before, id in store.left:
            await self.__prune(owner_before, [id], now)
        return result

    async def __get(self, id: str) -> Stored | None:
        """Return the session or tombstone. Damaged bytes are reported, and count as absent."""
        data = await self.get(id)
        stored = None if data is None else decode(id, data)
        if data is not None and stored is None:
            self.__damage.report(id, "its record")
        return stored

    async def __get_ending(self) -> Ending:
        content = await self.get(_ENDING)
        ending = NEVER if content is None else decode_ending(content)
        if ending is None:
            # Without it, no session is known to live.
            raise ValueError(f"the key {_ENDING!r} is damaged; remove it with the sessions, or restore it")
        return ending

    async def __get_owner(self, owner: str) -> _Owner:
        return await self.__get_owner_at(_key(owner))

    async def __get_owner_at(self, key: str) -> _Owner:
        content = await self.get(key)
        if content is None:
            return _Owner()
        data = verify(key, content)
        try:
            if data is not None:
                return _decoder.decode(data)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            pass
        self.__damage.report(None, f"the index entry {key}")
        return _Owner()

    async def __put_owner(self, owner: str, sessions: _Owner, now: float) -> None:
        key = _key(owner)
        sessions.sessions = {id: expires for id, expires in sessions.sessions.items() if expires > now}
        if sessions.expires() > now:
            await self.put(key, protect(key, _encoder.encode(sessions)), sessions.expires())
        else:
            await self.delete(key)

    async def __prune(self, owner: str, ids: Collection[str], now: float) -> None:
        """Remove from the index those of *ids* that aren't sessions of *owner*, or that end_everyone() ended."""
        if not ids:
            return
        ending = await self.__get_ending()
        async with self.lock([_key(owner)]):
            sessions = await self.__get_owner(owner)
            # With the owner's lock, no session becomes the owner's between these reads and the write. An expired one keeps its
            # entry until a purge, because a write whose *now* is earlier may still move its deadline.
            listed = [id for id in ids if id in sessions.sessions]
            stale = [id for id in listed if _rules.owned(await self.__get(id), owner, -math.inf, ending) is None]
            for id in stale:
                del sessions.sessions[id]
            if stale:
                await self.__put_owner(owner, sessions, now)


class _Owner(Struct):
    """An owner in the index."""

    sessions: dict[str, float] = {}
    """The absolute limit of each session by its id. Some may have ended, or changed their owner."""
    revoked: float | None = None

    def expires(self) -> float:
        """Return when the entry may be removed."""
        return max([*self.sessions.values(), -math.inf if self.revoked is None else self.revoked + TOMBSTONE], default=-math.inf)


_encoder = Encoder()
_decoder = Decoder(_Owner)


class _Store(Store):
    """What was read for one call, and what is to be written."""

    def __init__(self, name: str, stored: dict[str, Stored | None], owner: _Owner, ending: Ending) -> None:
        self.name = name
        self._ending = ending
        self._stored = stored
        self._owner = owner
        self.changed: dict[str, Stored] = {}
        """In the order in which they are to be written."""
        self.added = False
        """Whether a session was added to the owner's."""
        self.left: list[tuple[str, str]] = []
        """The owner and the id of each session that left its owner."""

    def get(self, id: str) -> Stored | None:
        return self._stored[id]

    def put(self, stored: Mapping[str, Stored]) -> None:
        self.changed |= stored

    def move(self, id: str, before: Ownership | None, after: Ownership | None, *, now: float) -> None:
        if after is not None:
            self._owner.sessions[id] = cast("Record", self.changed[id]).expires
            self.added = True
        if before is not None and (after is None or after.owner != before.owner):
            self.left.append((before.owner, id))

    def revoked(self, owner: str) -> float | None:
        return self._owner.revoked

    @property
    def ending(self) -> Ending:
        return self._ending


def _key(owner: str) -> str:
    return _OWNER + blake2b(owner.encode(), digest_size=28).hexdigest()
