"""The requests of clients while servers failed, their responses, and the broken promises in them; holds no test.

A request whose response isn't 200 may have taken effect or not, and may still do so: a server that wakes finds it in its queue. So
only acknowledged requests count, and only for requests that began later.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

ENDS = ("end", "renew", "end_all")
GAP = 2.0
"""Seconds without a stale read that separate two spans of stale reads."""
PROMPT = 1.0
"""Seconds within which a store without faults answers a read."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request and its response; times by time.monotonic().

    Clients put the name of the session, or a prefix of it that no other session has, into each value that they write.
    """

    client: str
    action: str
    """`read`, `put`, `login`, `count`, or one that ends a session or its cookie: `end`, `renew` or `end_all`."""
    session: str
    cookie: str | None
    """The cookie that it was sent with; None for a new session."""
    given: str | None
    """The cookie that its client has afterwards."""
    began: float
    ended: float
    status: int
    """0 if the connection broke before the response."""
    key: str = ""
    """The key that it writes."""
    owner: str = ""
    """The owner that it sets, or whose sessions it ends."""
    found: Mapping[str, Any] | None = None
    """The session's values, if the response has them."""
    count: int | None = None
    """The session's counter, if the response has it."""
    port: int = 0

    @property
    def is_acknowledged(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        return f"{self.action} {self.key or self.session} by {self.client}"


class Event(NamedTuple):
    """A fault of the servers, its repair, or a takeover."""

    at: float
    what: str
    is_takeover: bool = False
    is_harmless: bool = False
    """Whether all servers continued."""


class Stale(NamedTuple):
    """A read that found an earlier state."""

    began: float
    ended: float
    lag: float
    """Seconds since the acknowledgement of the state that it should have found."""
    what: str


class Span(NamedTuple):
    """Stale reads with less than GAP seconds between them."""

    began: float
    ended: float
    reads: int
    longest_lag: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Verdict:
    """The findings in a history; each list has a sentence for each time that one promise was broken."""

    lost: list[str] = field(default_factory=list[str])
    """Writes, logouts and increments that were acknowledged, and are undone by the last read."""
    doubled: list[str] = field(default_factory=list[str])
    foreign: list[str] = field(default_factory=list[str])
    """Reads that found what another session holds."""
    statuses: list[str] = field(default_factory=list[str])
    """Responses that are neither 200 nor 503, or that never came."""
    stale: list[Stale] = field(default_factory=list[Stale])
    logged_out: int = 0
    """Sessions that were absent after a renewal that wasn't acknowledged."""

    @property
    def spans(self) -> list[Span]:
        """The stale reads, those that lie close together as one."""
        spans: list[Span] = []
        for read in sorted(self.stale):
            if spans and read.began < spans[-1].ended + GAP:
                last = spans[-1]
                spans[-1] = Span(last.began, max(last.ended, read.ended), last.reads + 1, max(last.longest_lag, read.lag))
            else:
                spans.append(Span(read.began, read.ended, 1, read.lag))
        return spans


class History:
    """The requests of all clients, in no order; threads may add to it."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self.requests = [*requests]
        self.killed: set[int] = set()
        """Ports of processes that were killed, whose responses may be missing."""
        self.events: list[Event] = []
        self.stuck: list[str] = []
        """Requests that clients repeated without success, and gave up."""
        self.log = ""
        """The output of the site's processes."""

    def add(self, request: Request) -> Request:
        self.requests.append(request)
        return request

    def cookies(self) -> list[tuple[str, str]]:
        """Return each session with each cookie that it had."""
        pairs = [(each.session, cookie) for each in self.requests for cookie in (each.cookie, each.given) if cookie is not None]
        return [*dict.fromkeys(pairs)]

    def judge(self) -> Verdict:
        """Return all broken promises."""
        verdict = Verdict()
        sessions: defaultdict[str, list[Request]] = defaultdict(list)
        ends_of: defaultdict[str, list[Request]] = defaultdict(list)
        for each in sorted(self.requests, key=lambda request: request.began):
            if each.status not in {200, 503} and not (each.status == 0 and each.port in self.killed):
                verdict.statuses.append(f"{each}: {each.status or 'no response'}")
            (ends_of[each.owner] if each.action == "end_all" else sessions[each.session]).append(each)
        for requests in sessions.values():
            owner = next((each.owner for each in requests if each.owner), None)
            _judge(requests, [*requests, *(ends_of[owner] if owner else ())], verdict)
            _count(requests, verdict)
        return verdict

    def slower_than(self, seconds: float) -> list[str]:
        """Return the requests that took longer."""
        return [f"{each}: {each.ended - each.began:.1f} s" for each in self.requests if each.ended - each.began > seconds]

    def longest_gap(self, *actions: str) -> float:
        """Return the longest time in seconds in which none of *actions* succeeded."""
        ends = sorted(each.ended for each in self.requests if each.is_acknowledged and each.action in actions)
        return max((after - before for before, after in pairwise(ends)), default=0)

    def recoveries(self) -> list[float]:
        """Return, for each takeover, the seconds until the last read that failed, or took longer than PROMPT.

        Reads that begin after the next event don't count.
        """
        reads = [each for each in self.requests if each.action == "read" and each.port not in self.killed]
        found: list[float] = []
        events = [event for event in self.events if not event.is_harmless]
        for i, event in enumerate(events):
            if event.is_takeover:
                until = events[i + 1].at if i + 1 < len(events) else float("inf")
                waited = [
                    min(each.ended, until) - event.at
                    for each in reads
                    if (each.ended < until and not each.is_acknowledged) or min(each.ended, until) - each.began > PROMPT
                ]
                found.append(max(0.0, *waited, 0.0))
        return found

    def statuses(self) -> Counter[tuple[str, int]]:
        return Counter((each.action, each.status) for each in self.requests)


class _Fault(NamedTuple):
    """A read, and an acknowledged request that it contradicts."""

    found: str
    acknowledged: Request

    @property
    def at(self) -> float:
        return self.acknowledged.ended

    def __str__(self) -> str:
        return f"{self.found} {self.acknowledged}"


def _texts(read: Request) -> list[str]:
    return [value for value in (read.found or {}).values() if isinstance(value, str)]


def _judge(requests: list[Request], of_owner: list[Request], verdict: Verdict) -> None:
    """Judge one session's reads: by its own *requests*, and by those *of_owner* as well that end the owner's sessions."""
    login = next((each for each in requests if each.action == "login" and each.is_acknowledged), None)
    ends = [each for each in of_owner if each.action in ENDS]
    written = [each for each in requests if each.key and each.is_acknowledged]
    reads = [each for each in requests if each.found is not None and each.is_acknowledged]
    faults = {read: {*_faults(read, [end for end in ends if _concerns(end, read, login)], written, login)} for read in reads}
    last = {read.cookie: read for read in reads}
    for read in reads:
        strange = [value for value in _texts(read) if not read.session.startswith(value)]
        verdict.foreign += [f"{read} found {value}" for value in strange]
        remaining = faults[last[read.cookie]]
        if last[read.cookie] is read:
            verdict.lost += sorted(str(fault) for fault in remaining)
        else:
            verdict.stale += [
                Stale(read.began, read.ended, read.began - fault.at, str(fault)) for fault in faults[read] - remaining
            ]
    for read in last.values():
        mine = [end for end in ends if _concerns(end, read, login)]
        if not read.found and mine and all(end.action == "renew" and not end.is_acknowledged for end in mine):
            verdict.logged_out += 1


def _faults(read: Request, ends: list[Request], written: list[Request], login: Request | None) -> Iterator[_Fault]:
    """Yield each acknowledged request that *read* contradicts."""
    assert read.found is not None
    if read.found:
        for end in ends:
            if end.is_acknowledged and end.ended <= read.began and (end.action != "end_all" or _is_before(login, end)):
                yield _Fault(f"{read.session} is alive after", end)
                return
    elif any(end.began < read.ended for end in ends):
        return
    for write in written:
        if write.ended <= read.began and write.key not in read.found:
            yield _Fault(f"{read.session} lacks", write)


def _concerns(end: Request, read: Request, login: Request | None) -> bool:
    """Return whether *end* may end the session of *read*."""
    if end.action == "renew":
        return end.cookie == read.cookie
    # One that isn't acknowledged may yet happen, after a login that came later.
    return end.action == "end" or login is None or not end.is_acknowledged or login.began < end.ended


def _is_before(login: Request | None, end: Request) -> bool:
    return login is not None and login.ended <= end.began


def _count(requests: list[Request], verdict: Verdict) -> None:
    """Judge one session's counter: each value lies between the increments that were acknowledged and those that were attempted."""
    increments = [each for each in requests if each.action == "count"]
    acknowledged = [each for each in increments if each.is_acknowledged]
    seen = [(each, each.count) for each in requests if each.is_acknowledged and each.count is not None]
    for each, count in seen:
        before = [other for other in acknowledged if other.ended <= each.began]
        least = len(before) + (each.action == "count")
        most = sum(other.began < each.ended for other in increments)
        if count > most:
            verdict.doubled.append(f"{each} is {count} after {most} attempts")
        elif count < least and (each.action == "count" or each is seen[-1][0]):
            verdict.lost.append(f"{each} is {count} where {least} were acknowledged")
        elif count < least:
            lag = each.began - max(other.ended for other in before)
            verdict.stale.append(Stale(each.began, each.ended, lag, f"{each} found {count} of {least} increments"))
    for value, times in Counter(each.count for each in acknowledged).items():
        if times > 1:
            verdict.lost.append(f"{times} increments of {acknowledged[0].session} were answered {value}")
