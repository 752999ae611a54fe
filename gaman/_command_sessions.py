"""`gaman sessions`: counts, lists and ends the sessions of an application from the shell."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from gaman._app import App
from gaman._application import kind_of
from gaman._command_routes import align
from gaman._tracebacks import exit_with

if TYPE_CHECKING:
    from gaman.session import OwnedSession, SessionIntegration

T = TypeVar("T")

ACTIONS: Final = {
    "count": "[OWNER]",
    "list": "OWNER",
    "end": "HANDLE",
    "end-all": "OWNER",
    "end-everyone": "",
}
"""What each action takes after `main:app`, as messages write it."""


@dataclass(frozen=True)
class Arguments:
    """One run of the command: what it does, in which application, and to whose sessions."""

    action: str
    target: str
    name: str | None
    """The owner or the handle."""
    is_confirmed: bool
    as_json: bool


def run(arguments: Arguments, value: object) -> None:
    """Do what *arguments* says with the sessions of *value*, and print the result. SystemExit has the reason why not."""
    action, name = arguments.action, arguments.name
    if (name is not None and not ACTIONS[action]) or (name is None and ACTIONS[action][:1] not in ("", "[")):
        sys.exit(f"gaman: write gaman sessions {action} {arguments.target} {ACTIONS[action]}".rstrip())
    sessions = _find(arguments, value)
    # Only the calls of `list` and `end` have a name here.
    owner = name or ""
    if action == "count":
        count = _call(sessions, lambda: sessions.count(name))
        _print(arguments, {"count": count}, str(count))
    elif action == "list":
        found = _call(sessions, lambda: sessions.list(owner))
        _print(arguments, [_as_json(each) for each in found], *(_table(found) if found else [_none_of(owner)]))
    elif action == "end":
        _confirm(arguments, f"End the session {_text(owner)}?")
        existed = _call(sessions, lambda: sessions.end(owner))
        _print(
            arguments, {"ended": existed}, "gaman: ended" if existed else f"gaman: no live session has the handle {_text(owner)}"
        )
        if not existed:
            sys.exit(1)
    elif action == "end-all":
        _confirm(arguments, f"End all sessions of {_text(owner)}?")
        ended = _call(sessions, lambda: sessions.end_all(owner))
        _print(arguments, {"ended": ended}, _none_of(owner) if ended == 0 else f"gaman: {ended} ended")
        if ended == 0:
            sys.exit(1)
    else:
        _confirm(arguments, f"End all sessions of all users of {arguments.target}?")
        _call(sessions, sessions.end_everyone)
        _print(arguments, {"ended": True}, "gaman: all sessions of all users are ended")


def _none_of(owner: str) -> str:
    return f"gaman: no live session of {_text(owner)} with this GAMAN_KEY; check the owner's spelling, and the key"


def _find(arguments: Arguments, value: object) -> SessionIntegration:
    """Return the sessions that *value* is or has, or another object with their calls; else exit."""
    found: Any = value
    if isinstance(value, App):
        found = next((each for each in value.integrations if each.make_session is not None), None)
        if found is None:
            sys.exit(f"gaman: {arguments.target} has no session(); add it to integrations=[...], or name another App")
    call = arguments.action.replace("-", "_")
    if not all(callable(getattr(found, name, None)) for name in ("running", call)):
        module = arguments.target.partition(":")[0]
        what = f"{arguments.target} is {kind_of(value)}" if found is value else f"that of {arguments.target} is {kind_of(found)}"
        sys.exit(
            f"gaman: gaman sessions needs a gaman.App with session(), or the session() object itself, and {what}; "
            f"write sessions = session(...) in {module}, and name {module}:sessions"
        )
    sessions: SessionIntegration = found
    if not sessions.shared:
        sys.exit(
            f"gaman: {arguments.target} keeps its sessions in its own memory, where no other process sees them; "
            f"choose another driver, such as sql, or call sessions.{call}() in a handler"
        )
    return sessions


def _call(sessions: SessionIntegration, call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of *call* while the store is open; exit with the reason of a failure."""

    async def work() -> T:
        async with sessions.running():
            return await call()

    try:
        return asyncio.run(work())
    except Exception as error:
        exit_with(error)


def _confirm(arguments: Arguments, question: str) -> None:
    """Ask the *question* unless --yes was given; exit unless the answer is yes."""
    if arguments.is_confirmed:
        return
    if not sys.stdin.isatty():
        sys.exit(f"gaman: gaman sessions {arguments.action} can't be undone, and no terminal is there to confirm it; add --yes")
    # stdout is for the result.
    print(f"{question} This can't be undone. [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        sys.exit("gaman: nothing is ended")


def _print(arguments: Arguments, value: object, *lines: str) -> None:
    """Print the *value* as JSON, or the *lines* for people."""
    if arguments.as_json:
        print(_json(value))
    else:
        print("\n".join(lines))


def _as_json(session: OwnedSession) -> dict[str, Any]:
    return {
        "handle": session.handle,
        "created_at": _iso(session.created_at),
        "last_used_at": session.last_used_at and _iso(session.last_used_at),
        "expires_at": _iso(session.expires_at),
        "note": session.note,
    }


def _table(found: Sequence[OwnedSession]) -> Iterator[str]:
    rows = [("handle", "created", "last used", "expires", "note")]
    for each in found:
        used = "" if each.last_used_at is None else _iso(each.last_used_at)
        rows.append((each.handle, _iso(each.created_at), used, _iso(each.expires_at), _text(each.note)))
    yield from align(rows)


def _iso(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _text(note: object) -> str:
    """Return a *note* or an owner on one line, without characters that control a terminal, because visitors may have chosen it."""
    text = "" if note is None else note if isinstance(note, str) else _json(note, ensure_ascii=False)
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _json(value: object, *, ensure_ascii: bool = True) -> str:
    return json.dumps(_plain(value), default=str, ensure_ascii=ensure_ascii, allow_nan=False)


def _plain(value: object) -> object:
    """Return what JSON can hold of *value*: text in the place of other keys, and None in the place of inf and nan."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in cast("Sequence[object]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
