"""The peers' sessions in stores, without their frameworks: only the work of their middleware with serializer and store.

All three write the whole session back after each request, even after one that only reads, as their documentation sets them up.
That costs a round trip, and lets a request undo the changes of a concurrent one.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.rivals.bare import USER

LIFETIME: Final = 86_400
Session = dict[str, Any]


def visit(user: Session) -> Session:
    """Return the user with one more visit."""
    return {**user, "visits": user.get("visits", 0) + 1}


CHANGES: Final[Mapping[str, Callable[[Session], object]]] = {
    "load": lambda session: session.get("user"),
    "write": lambda session: session.update(user=USER),
    "read-write": lambda session: session.update(user=session["user"]),
    "update": lambda session: session.update(user=visit(session["user"])),
    "regenerate": lambda session: session.get("user"),
}
"""The work of a request, if a session is a dict."""


class Service(ABC):
    """It serves requests with sessions in a store."""

    in_threads: ClassVar[bool] = False
    """Whether it is made for threads, each of which serves one request at a time."""

    @abstractmethod
    def serve(self, operation: str, key: Any) -> Any:
        """Serve a request in the session of *key*, or in a new one; return the session's key and the response."""

    @abstractmethod
    def read(self, response: Any) -> Any:
        """Return the user in *response*, or None."""

    @abstractmethod
    async def open(self) -> None:
        """Connect to the store."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


class Storing(Service):
    """A peer's serializer and store. A key is the session's id; a response is the session itself."""

    name: ClassVar[str]
    package: ClassVar[str]
    lacks: ClassVar[Mapping[str, str]] = {}
    """Operations that it lacks, with the reason."""

    @abstractmethod
    def __init__(self, kind: str, place: str) -> None:
        """Prepare the store of *kind* at *place*."""

    def read(self, response: Session) -> Any:
        return response.get("user")

    async def open(self) -> None:
        pass


class Starsessions(Storing):
    """starsessions: its SessionHandler and its store of *kind*."""

    name = package = "starsessions"
    lacks: ClassVar = {"regenerate": "leaves the session under its old id too"}

    def __init__(self, kind: str, place: str) -> None:
        self._sessions: Any = import_module("starsessions.session")
        self._requests: Any = import_module("starlette.requests")
        self._serializer: Any = import_module("starsessions.serializers").JsonSerializer()
        stores: Any = import_module(f"starsessions.stores.{kind}")
        self._redis: Any = import_module("redis.asyncio").Redis.from_url(place) if kind == "redis" else None
        self._store: Any = stores.InMemoryStore() if self._redis is None else stores.RedisStore(connection=self._redis)

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()

    async def serve(self, operation: str, key: str | None) -> tuple[str, Session]:
        connection = self._requests.HTTPConnection({"type": "http"})
        handler = self._sessions.SessionHandler(connection, key, self._store, self._serializer, LIFETIME)
        connection.scope["session_handler"] = handler
        await handler.load()
        CHANGES[operation](connection.session)
        new_key: str = await handler.save(self._sessions.get_session_remaining_seconds(connection))
        return new_key, connection.session


class Litestar(Storing):
    """Litestar: its ServerSideSessionBackend and its store of *kind*."""

    name, package = "Litestar", "litestar"
    lacks: ClassVar = {"regenerate": "can't change the id of a session"}

    def __init__(self, kind: str, place: str) -> None:
        sessions: Any = import_module("litestar.middleware.session.server_side")
        stores: Any = import_module(f"litestar.stores.{kind}")
        if kind == "redis":
            self._store: Any = stores.RedisStore.with_client(place)
        elif kind == "file":
            self._store = stores.FileStore(Path(place, "litestar"))
        else:
            self._store = stores.MemoryStore()
        self._backend: Any = sessions.ServerSideSessionBackend(sessions.ServerSideSessionConfig(max_age=LIFETIME))

    async def close(self) -> None:
        await self._store.__aexit__(None, None, None)

    async def serve(self, operation: str, key: str | None) -> tuple[str, Session]:
        data = None if key is None else await self._backend.get(key, self._store)
        session: Session = {} if data is None else self._backend.deserialize_data(data)
        CHANGES[operation](session)
        key = key or str(self._backend.generate_session_id())
        await self._backend.set(key, self._backend.serialize_data(session), self._store)
        return key, session


class FlaskSession(Storing):
    """Flask-Session: its interface for the store of *kind*."""

    name, package = "Flask-Session", "flask-session"
    in_threads = True

    def __init__(self, kind: str, place: str) -> None:
        # The first import, so that nothing is open if the package is missing.
        import_module("flask_session")
        flask: Any = import_module("flask")
        app: Any = flask.Flask("benchmark")
        client: Any
        if kind == "redis":
            client = import_module("redis").Redis.from_url(place)
            self._interface: Any = import_module("flask_session.redis").RedisSessionInterface(app, client)
        elif kind == "mongodb":
            client = import_module("pymongo").MongoClient(place)
            self._interface = import_module("flask_session.mongodb").MongoDBSessionInterface(app, client)
        elif kind == "file":
            client = import_module("cachelib").FileSystemCache(f"{place}/flask", threshold=0)
            self._interface = import_module("flask_session.cachelib").CacheLibSessionInterface(app, client)
        else:
            app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{place}/flask.db"
            client = import_module("flask_sqlalchemy").SQLAlchemy(app)
            self._interface = import_module("flask_session.sqlalchemy").SqlAlchemySessionInterface(app, client)
        self._app, self._client = app, client
        self._lifetime = timedelta(seconds=LIFETIME)

    async def close(self) -> None:
        if hasattr(self._client, "close"):
            self._client.close()

    def serve(self, operation: str, key: str | None) -> tuple[str, Session]:
        interface = self._interface
        with self._app.app_context():
            data = None if key is None else interface._retrieve_session_data(interface._get_store_id(key))
            session = interface.session_class(data, sid=key or secrets.token_urlsafe(32))
            CHANGES[operation](session)
            if operation == "regenerate":
                interface.regenerate(session)
            if session:
                interface._upsert_session(self._lifetime, session, interface._get_store_id(session.sid))
            return session.sid, session


PEERS: Final[Mapping[type[Storing], tuple[str, ...]]] = {
    Starsessions: ("memory", "redis"),
    Litestar: ("memory", "redis", "file"),
    FlaskSession: ("redis", "sql", "file", "mongodb"),
}
"""The kinds of store that each peer has."""
