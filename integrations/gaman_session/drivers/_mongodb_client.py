"""The connection to MongoDB: the client with its options, the collection, and the collection's indexes."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

from bson import CodecOptions
from bson.codec_options import DatetimeConversion
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import ConfigurationError, InvalidName, InvalidURI, OperationFailure

from gaman.errors import ConfigError
from gaman_session.drivers._mongodb_waits import make_waits_cancellable

Client: TypeAlias = AsyncMongoClient[dict[str, Any]]
Collection: TypeAlias = AsyncCollection[dict[str, Any]]
Result = TypeVar("Result")

# Dates beyond the year 9999 and text that isn't UTF-8 must not prevent a document from being read.
CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, unicode_decode_error_handler="surrogateescape"
)
_INDEXES: Final[dict[str, dict[str, Any]]] = {"deadline": {"expireAfterSeconds": 0}, "owner": {"sparse": True}}
_UNAUTHORIZED: Final = 13
_ILLEGAL_OPERATION: Final = 20
_INDEX_CONFLICTS: Final = (85, 86)


def make_client(uri: str, *, timeout: float, pool_size: int) -> Client:
    """Return a client, which connects with its first call; ConfigError, without the password, for a uri that can't be used."""
    make_waits_cancellable()
    # Reads keep the concern "local": a new primary has every acknowledged write, but may not show some of them to "majority" yet.
    options: dict[str, Any] = {
        "appName": "gaman",
        "w": "majority",
        "journal": True,
        "connectTimeoutMS": 1000,
        "heartbeatFrequencyMS": 1000,
        # Shorter than the call's timeout, because this error says which server did not answer, and why.
        "serverSelectionTimeoutMS": math.ceil(max(timeout - 1, timeout / 2) * 1000),
        "maxPoolSize": pool_size,
    }
    named = {option.partition("=")[0].lower() for option in re.split("[&;]", uri.partition("?")[2])}
    try:
        with warnings.catch_warnings():
            # Otherwise pymongo goes on without an option that it can't read, even without tls.
            warnings.simplefilter("error", UserWarning)
            return AsyncMongoClient(uri, **{name: value for name, value in options.items() if name.lower() not in named})
    except (InvalidURI, ValueError):
        takes = "it takes mongodb://user:password@host:port, where user and password are percent-encoded"
        raise ConfigError(f"the mongodb driver has a uri that can't be read; {takes}") from None
    except (ConfigurationError, OSError, UserWarning) as cause:
        raise ConfigError(f"the mongodb driver can't use the options of its uri: {cause}") from cause


def find_collection(client: Client, db_name: str, collection: str) -> Collection:
    """Return the collection; ConfigError if one of the names isn't allowed."""
    try:
        return client.get_database(db_name).get_collection(collection, codec_options=CODEC)
    except InvalidName as cause:
        raise ConfigError(f"the mongodb driver has db_name={db_name!r} and collection={collection!r}: {cause}") from cause


async def write(send: Callable[[], Awaitable[Result]]) -> Result:
    """Return the result of *send*, which makes one write, and call it again if a standalone server refused to retry that write.

    pymongo retries a write that found no connection. It adds a transaction number, which only replica sets accept.
    """
    try:
        return await send()
    except OperationFailure as error:
        if error.code != _ILLEGAL_OPERATION:
            raise
    return await send()


async def create_indexes(sessions: Collection) -> None:
    """Create the indexes; ConfigError if another index is in the way, or this user isn't allowed to."""
    for field, options in _INDEXES.items():
        await _create_index(sessions, field, options)


async def _create_index(sessions: Collection, field: str, options: dict[str, Any]) -> None:
    where, db, collection = sessions.full_name, json.dumps(sessions.database.name), json.dumps(sessions.name)
    try:
        await sessions.create_index(field, **options)
    except OperationFailure as cause:
        if cause.code in _INDEX_CONFLICTS:
            name = f"{field}_1"
            indexes = await sessions.index_information()
            others = [each for each, index in indexes.items() if each == name or index["key"] == [(field, 1)]]
            drop = "; ".join(f"db.getSiblingDB({db}).getCollection({collection}).dropIndex({json.dumps(each)})" for each in others)
            raise ConfigError(
                f"the mongodb driver needs an index on {field!r} of {where} with {json.dumps(options)}, "
                f"and another is in the way; drop it in mongosh: {drop}"
            ) from cause
        if cause.code == _UNAUTHORIZED:
            raise ConfigError(
                f"the mongodb driver may not create its index on {field!r} of {where}; in mongosh, give its user the role "
                f'that may: db.grantRolesToUser("...", [{{role: "readWrite", db: {db}}}])'
            ) from cause
        raise
