"""LoginList: the logins of each owner whose sessions are in cookies, in the store of ended sessions, so that they can be listed.

An owner has one record, with a sealed field for the session of each login, and one for the login's note. Until the record is full,
no live session is missing: where a field names an id that the session no longer has, the record of that one names the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Driver, Outcome, Record, load_all
from gaman_session._ended_store import MAX_COOKIE_AGE, try_create
from gaman_session._errors import SessionConflict
from gaman_session._gather import gather
from gaman_session._sealing import Keyring

logger = logging.getLogger("gaman")

MAX_NOTE: Final = 1024
"""Bytes of a note."""
MAX_SESSIONS: Final = 300
"""How many sessions of an owner fit into the list for certain."""

_MAX_SIZE: Final = 512 * 1024
"""Bytes of an owner's list, which a call reads as a whole."""
_PLACEHOLDER: Final = "kept"
"""A field that is never deleted, because a record without fields would leave a tombstone, and a login couldn't make a new one."""
_PRUNING: Final = "01"
"""A login that begins with one of these, as one in eight does, removes those that have expired."""
_MAX_ATTEMPTS: Final = 10


class Listed(NamedTuple):
    """The session of a login. Times are seconds since the epoch."""

    handle: str
    since: float
    """When login() was called. An end_all() that came later has ended the session."""
    created: float
    deadline: float
    """When it expires unless it is used, as was known when this was written."""
    until: float
    """When it has expired for certain: it may have been used since, without a write to the list."""
    expires: float
    """When its cookie expires at the latest."""


class Entry(NamedTuple):
    """A session in the list."""

    login: str
    """Identifies the login. The session keeps it under each new id."""
    listed: Listed
    note: bytes
    """As the session has encoded it; empty if there is none, or it is damaged."""

    @property
    def field(self) -> str:
        """The name of its field."""
        return _field(self.login, self.listed.handle)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, float, float, float, float]).decode


class LoginList:
    """The logins of each owner, in a store of ended sessions."""

    def __init__(self, store: Driver, keyring: Keyring, damage: Damage) -> None:
        self._store = store
        self._keyring = keyring
        self._damage = damage

    async def find(self, owner: str, now: float) -> list[Entry]:
        """Return every login of *owner*, expired and ended ones included."""
        names = self._keyring.owner_names(owner)
        records = await load_all(self._store, [*map(_id, names)], now=now)
        found = [
            (field, data)
            for name, record in zip(names, records, strict=True)
            if isinstance(record, Record)
            for field, sealed in record.fields.items()
            if field != _PLACEHOLDER and (data := self._open(field, name, sealed)) is not None
        ]
        # After a change of the secret, the note of a login may be in another record than its session.
        notes = {field: data for field, data in found if " " not in field}
        entries: list[Entry] = []
        for field, data in found:
            login, _, handle = field.partition(" ")
            if handle:
                entries.append(Entry(login, Listed(handle, *_decode(data)), notes.get(login, b"")))
        return entries

    async def add(self, owner: str, login: str, listed: Listed, note: bytes, now: float) -> None:
        """List the session of a new *login*."""
        putting = self.put(owner, login, listed, now, note=note)
        await (gather(putting, self._prune(owner, now)) if login[0] in _PRUNING else putting)

    async def put(
        self, owner: str, login: str, listed: Listed, now: float, *, note: bytes = b"", former: str | None = None
    ) -> None:
        """List the session of a *login*, which had the handle *former* before."""
        name = self._keyring.owner_names(owner)[0]
        data = {_field(login, listed.handle): _encode(listed[1:])}
        if note:
            data[login] = note
        sets = {field: self._keyring.seal_note(field, name, each) for field, each in data.items()}
        deletes = () if former is None else (_field(login, former),)
        deadline, failure = now + MAX_COOKIE_AGE + TOMBSTONE, None
        for _ in range(_MAX_ATTEMPTS):
            outcome = await self._store.apply(_id(name), sets, deletes, now=now, deadline=deadline, max_size=_MAX_SIZE)
            if outcome is Outcome.WRITTEN:
                return
            if outcome is Outcome.TOO_LARGE:
                await self._make_room(owner, now)
            elif failure is not None:
                raise failure
            else:
                failure = await try_create(self._store, _id(name), {_PLACEHOLDER: b"", **sets}, now, deadline)
                if failure is None:
                    return
        raise SessionConflict(f"a session met concurrent ones of its owner {_MAX_ATTEMPTS} times")

    async def remove(self, owner: str, entries: Iterable[Entry], others: Iterable[Entry], now: float) -> None:
        """Remove *entries* from the list, and the notes of logins that none of the *others* has."""
        notes = {each.login for each in entries} - {each.login for each in others}
        await self._delete(owner, {*notes, *(each.field for each in entries)}, now)

    async def remove_login(self, owner: str, login: str, handles: Iterable[str], now: float) -> None:
        """Remove a *login* whose session, which had these *handles*, has ended."""
        await self._delete(owner, {login, *(_field(login, handle) for handle in handles)}, now)

    async def _delete(self, owner: str, fields: set[str], now: float) -> None:
        ids = [*map(_id, self._keyring.owner_names(owner))]
        await gather(*(self._store.apply(id, {}, fields, now=now, deadline=None, max_size=_MAX_SIZE) for id in ids))

    async def _prune(self, owner: str, now: float) -> None:
        """Remove the logins that have expired."""
        entries = await self.find(owner, now)
        old = [each for each in entries if each.listed.until <= now]
        if old:
            records = await load_all(self._store, [each.listed.handle for each in old], now=now)
            # The record of one that has ended may lead to its next id.
            expired = {each.field for each, record in zip(old, records, strict=True) if not isinstance(record, Record)}
            others = [each for each in entries if each.field not in expired]
            await self.remove(owner, [each for each in old if each.field in expired], others, now)

    async def _make_room(self, owner: str, now: float) -> None:
        """Remove half of the list: first logins that have expired, and then the oldest."""
        entries = sorted(await self.find(owner, now), key=lambda entry: (entry.listed.until > now, entry.listed.since))
        half = len(entries) // 2 + 1
        live = sum(each.listed.until > now for each in entries[:half])
        if live:
            logger.warning("sessions.list() leaves out the %d oldest logins of an owner; set max_sessions_per_owner", live)
        await self.remove(owner, entries[:half], entries[half:], now)

    def _open(self, field: str, name: str, sealed: bytes) -> bytes | None:
        """Return what a field of the record of that *name* holds, or None if it is damaged."""
        data = self._keyring.open_note(field, name, sealed)
        if data is None:
            self._damage.report(_id(name), "a login of an owner")
        return data


def login_of(nonce: str) -> str:
    """Return what identifies a login in the list: not its *nonce*, which the tokens of csrf_token() are bound to."""
    return blake2b(nonce.encode(), digest_size=16, person=b"gaman login").hexdigest()


def _id(owner_name: str) -> str:
    """Return the id of the list of the owner of that name."""
    return blake2b(owner_name.encode(), digest_size=32, person=b"gaman logins").hexdigest()


def _field(login: str, handle: str) -> str:
    return f"{login} {handle}"
