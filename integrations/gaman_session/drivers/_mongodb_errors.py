"""The errors of MongoDB: what a bulk write says of each update, and messages that show no ids and no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.errors import BSONError
from pymongo.errors import DocumentTooLarge, NotPrimaryError, OperationFailure, WriteConcernError, WriteError

from gaman.errors import causes_of
from gaman_session.drivers._mongodb_documents import REFUSED


def results_of(count: int, details: Mapping[str, Any]) -> list[bool | BaseException]:
    """Return for each update of a bulk write whether it found a live session, or its error, without the values to be written."""
    if unconfirmed := unconfirmed_error(details):
        raise unconfirmed from None
    results: list[bool | BaseException] = [True] * count
    for error in details["writeErrors"]:
        results[error["index"]] = False if error["code"] == REFUSED else WriteError(error["errmsg"], error["code"])
    return results


def unconfirmed_error(details: Mapping[str, Any]) -> WriteConcernError | None:
    """Return the error of a bulk write that was made and not confirmed, or None."""
    return next((WriteConcernError(error["errmsg"], error["code"], error) for error in details["writeConcernErrors"]), None)


def conceal(error: Exception, timeout: float) -> Exception:
    """Return *error* without documents, ids and values in its message and those of its causes, because logs show them."""
    for each in causes_of(error):
        if isinstance(each, (OperationFailure, NotPrimaryError)):
            each.args = (_codes(each),)
        elif isinstance(each, BSONError) and not isinstance(each, DocumentTooLarge):
            each.args = ()
        elif isinstance(each, TimeoutError) and not each.args:
            each.args = (f"MongoDB did not answer within {timeout} seconds",)
    return error


def _codes(error: OperationFailure | NotPrimaryError) -> str:
    """Return the server's names and codes for the errors in *error*."""
    details: Any = error.details if isinstance(error.details, Mapping) else {}
    errors: list[dict[str, Any]] = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())] or [details]
    code = error.code if isinstance(error, OperationFailure) else None
    return ", ".join(sorted({f"{each.get('codeName', 'code')} {each.get('code', code)}" for each in errors}))
