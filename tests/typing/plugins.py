"""Correct integrations, serializers and drivers of a user: read by mypy and pyright, never run."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, assert_type

from gaman import App, Context, Integration, Priority, Response, define_integration
from gaman.session import Driver, Outcome, Record, Serializer, SessionStoreError, session
from gaman.session.testing import CONTRACT, Check
from gaman_session.drivers.memory import MemoryDriver


def on_load(app: App) -> None: ...


async def on_load_later(app: App) -> None: ...


def on_request(ctx: Context) -> None:
    ctx.locals["began"] = 1


async def on_request_later(ctx: Context) -> Response | None:
    return Response.text("closed", 503) if await ctx.session.has("banned") else None


def on_response(ctx: Context, response: Response) -> None:
    response.headers["server"] = "mine"


async def on_response_later(ctx: Context, response: Response) -> Response:
    return response


def on_error(ctx: Context, error: Exception) -> Response | None:
    return Response.text("sorry", 500) if isinstance(error, LookupError) else None


async def on_purge(app: App) -> int:
    return 0


def timing(priority: Priority = "high") -> Integration:
    return define_integration(name="timing", priority=priority, on_load=on_load, on_request=on_request, on_response=on_response)


later = define_integration(
    name="later",
    on_load=on_load_later,
    on_shutdown=on_load_later,
    on_request=on_request_later,
    on_response=on_response_later,
    on_unmatched=on_request_later,
    on_error=on_error,
    on_purge=on_purge,
)
assert_type(later, Integration)


class Hooks:
    """Hooks may be methods and callable objects."""

    async def on_request(self, ctx: Context) -> None: ...

    def __call__(self, ctx: Context, error: Exception) -> None: ...


hooks = Hooks()
of_an_object = define_integration(name="object", on_request=hooks.on_request, on_error=hooks, on_purge=lambda app: 0)


class Plain:
    def encode(self, value: Any, /) -> bytes:
        return repr(value).encode()

    def decode(self, data: bytes, type: Any, /) -> Any:
        return data.decode()


class MyDriver:
    """A driver without a base class: its methods make it a driver."""

    name = "mine"
    shared = True

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        record = self.records.get(id)
        assert_type(record, Record | None)
        return record if record is not None and record.deadline > now else None

    async def create(self, id: str, record: Record) -> None:
        if id in self.records:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        self.records[id] = record

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        self.records[id].fields.update(sets)
        return Outcome.WRITTEN

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return Outcome.CONFLICT

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        self.records[new_id] = record
        return Outcome.WRITTEN

    async def destroy(self, id: str, *, now: float) -> None:
        self.records.pop(id, None)

    async def purge(self, *, now: float, limit: int) -> int:
        return 0


class Inheriting(Driver):
    """A driver may inherit from Driver and still has to define every method; its name may be a property."""

    @property
    def name(self) -> str:
        return "inheriting"

    @property
    def shared(self) -> bool:
        return False

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def load(self, id: str, *, now: float) -> None:
        return None

    async def create(self, id: str, record: Record) -> None: ...

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Literal[Outcome.ABSENT]:
        return Outcome.ABSENT

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return Outcome.ABSENT

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        return Outcome.ABSENT

    async def destroy(self, id: str, *, now: float) -> None: ...

    async def purge(self, *, now: float, limit: int) -> int:
        return 0


mine: Driver = MyDriver()
inheriting: Driver = Inheriting()
memory: Driver = MemoryDriver(max_sessions=10)
serializer: Serializer = Plain()
integrations = [timing(), later, of_an_object, session(driver=memory), session("secret", MyDriver(), serializer=Plain())]
app = App({}, integrations=integrations, debug=True, max_body_size=1 << 16)


async def contract(driver: Driver) -> None:
    check: Check
    for check in CONTRACT:
        await check(driver)
