"""The speed of the serializer: from a value to bytes and back, as the session calls it.

MessagePack is the session's default format, and JSON is an option. The baseline is msgspec called directly.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from benchmarks.harness import Case, Contender, Entered, Goal, Missing, Plan, Question, caller, contenders, timed_code
from benchmarks.report.results import BEST_PEER
from benchmarks.rivals.bare import USER
from gaman_session._serializer import CODECS

BASELINE = "msgspec, MessagePack"


@dataclass
class User:
    id: int
    name: str
    email: str


class Payload(NamedTuple):
    name: str
    value: Any


# Every object is new, because pickle writes only a reference to an object that it has written before.
def item(number: int) -> dict[str, Any]:
    title = f"Kopi Gayo {number}"
    return {"sku": f"B0-{number:04}-XL", "title": title, "price": 89_000 + number, "quantity": 2, "options": [f"ground {number}"]}


def event(number: int) -> dict[str, Any]:
    path, note = f"/products/kopi-{number}", f"Selamat pagi ☕ {number}"
    return {"id": 123_456 + number, "at": 1_764_100_000.25 + number, "path": path, "seen": True, "note": note, "tags": [1, number]}


PAYLOADS = [
    Payload("the user", USER),
    Payload("a flag", True),
    Payload("a cart", {"id": "c-42", "currency": "IDR", "items": [item(i) for i in range(5)], "coupon": None, "total": 890_000}),
    Payload("1 KB", {"events": [event(i) for i in range(8)]}),
    Payload("10 KB", {"events": [event(i) for i in range(80)]}),
    Payload("bytes", bytes(range(256)) * 4),
]


@dataclass(frozen=True)
class Rival:
    """A serializer; *encode* and *decode* are the code that is timed, and *names* its globals."""

    name: str
    encode: str
    decode: str
    names: dict[str, Any]
    version: str | None = None
    source: str = field(default_factory=caller)


def rivals() -> list[Rival | Missing]:
    found: list[Rival | Missing] = [
        Rival("json", "dumps(value).encode()", "loads(data)", {"dumps": json.dumps, "loads": json.loads}),
        Rival("pickle", "dumps(value, -1)", "loads(data)", {"dumps": pickle.dumps, "loads": pickle.loads}),
    ]
    try:
        orjson: Any = import_module("orjson")
    except ModuleNotFoundError:
        return [*found, Missing("orjson", "not installed: orjson")]
    return [
        *found,
        Rival("orjson", "dumps(value)", "loads(data)", {"dumps": orjson.dumps, "loads": orjson.loads}, version("orjson")),
    ]


def ours() -> list[tuple[Rival, Rival]]:
    """Return gaman's serializers as the session calls them, each with its baseline."""
    return [
        (
            Rival(
                f"gaman, {label}",
                "codec.encoder.encode(value)",
                "codec.decoder.decode(data)",
                {"codec": CODECS[name]},
            ),
            Rival(
                f"msgspec, {label}",
                "encode(value)",
                "decode(data)",
                {"encode": protocol.Encoder().encode, "decode": protocol.Decoder().decode},
            ),
        )
        for name, label, protocol in (("msgpack", "MessagePack", msgspec.msgpack), ("json", "JSON", msgspec.json))
    ]


def contend(rival: Rival, kind: Any, value: Any, code: Callable[[Rival], str]) -> Contender | Missing:
    """Return a contender that times *code* of *rival*; it can't take part if it doesn't return the same value."""
    names = {**rival.names, "value": value}
    try:
        names["data"] = eval(rival.encode, names)
        is_kept = eval(rival.decode, names) == value
    except (TypeError, ValueError):
        is_kept = False
    if not is_kept:
        return Missing(rival.name, f"does not keep {type(value).__name__}")
    return Contender(
        name=rival.name,
        kind=kind,
        version=rival.version,
        source=rival.source,
        measure=timed_code(code(rival), names),
        result=partial(eval, rival.decode, names),
    )


def all_serializers(value: Any, code: Callable[[Rival], str]) -> Entered:
    found: list[Contender | Missing] = []
    for mine, baseline in ours():
        found += [contend(mine, "ours", value, code), contend(baseline, "baseline", value, code)]
    return contenders(*found, *(each if isinstance(each, Missing) else contend(each, "peer", value, code) for each in rivals()))


def typed() -> Entered:
    """Decode the user into a dataclass: in one step, or by hand from a dict."""
    found: list[Contender | Missing] = []

    def add(name: str, kind: Any, code: str, names: dict[str, Any], version: str | None = None) -> None:
        names = {**names, "User": User}
        found.append(
            Contender(name=name, kind=kind, version=version, measure=timed_code(code, names), result=partial(eval, code, names))
        )

    for mine, baseline in ours():
        protocol = msgspec.msgpack if "MessagePack" in mine.name else msgspec.json
        data = protocol.encode(USER)
        names = {**mine.names, "data": data}
        mine.names["codec"].learn(User)
        add(mine.name, "ours", "codec.decoders[User].decode(data)", names)
        add(f"{mine.name}, untyped", "ours", "User(**codec.decoder.decode(data))", names)
        add(baseline.name, "baseline", "decode(data)", {"decode": protocol.Decoder(User).decode, "data": data})
    for rival in rivals():
        if isinstance(rival, Missing):
            found.append(rival)
        else:
            is_pickle = rival.name == "pickle"
            data = eval(rival.encode, {**rival.names, "value": User(1, "Angga", "angga@example.com") if is_pickle else USER})
            code = rival.decode if is_pickle else f"User(**{rival.decode})"
            add(rival.name, "peer", code, {**rival.names, "data": data}, rival.version)
    return contenders(*found)


def goals(value: Any) -> list[Goal]:
    mine = [
        baseline.name.replace("msgspec", "gaman")
        for _, baseline in ours()
        if not (isinstance(value, bytes) and "JSON" in baseline.name)
    ]
    return [
        *(Goal(sense="at most", limit=1.15, of=name, against=name.replace("gaman", "msgspec")) for name in mine),
        Goal(sense="at least", limit=1.0, of="gaman, MessagePack", against=BEST_PEER),
    ]


def cases(plan: Plan) -> list[Case]:
    directions: list[tuple[str, Callable[[Rival], str]]] = [
        ("encode", lambda rival: rival.encode),
        ("decode", lambda rival: rival.decode),
    ]
    return [
        *(
            Case(
                name=f"{verb} {payload.name}",
                baseline=BASELINE,
                enter=partial(all_serializers, payload.value, code),
                goals=goals(payload.value),
            )
            for payload in PAYLOADS
            for verb, code in directions
        ),
        Case(name="decode the user into a dataclass", baseline=BASELINE, enter=typed, goals=goals(USER)),
    ]


QUESTION = Question(
    name="serializer",
    title="How fast is the serializer?",
    cases=cases,
    seconds=60,
    quick_seconds=5,
)
