import copy
import pickle
from typing import Any

import pytest

from gaman import ClientDisconnected, ConfigError, GamanError, HeaderError, HTTPError, InvalidInput, MissingDependency, ResultError

CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "error", [ClientDisconnected, ConfigError, HeaderError, HTTPError, InvalidInput, MissingDependency, ResultError]
)
def test_every_error_is_a_gaman_error(error: type[Exception]) -> None:
    assert issubclass(error, GamanError)


def test_a_missing_dependency_is_an_import_error_too() -> None:
    assert issubclass(MissingDependency, ImportError)
    assert issubclass(MissingDependency, ConfigError)


def test_a_header_error_is_a_value_error_too() -> None:
    assert issubclass(HeaderError, ValueError)


def test_a_result_error_is_a_type_error_and_a_value_error_too() -> None:
    assert issubclass(ResultError, TypeError)
    assert issubclass(ResultError, ValueError)


def test_an_http_error_without_a_detail_has_the_phrase_of_its_status() -> None:
    error = HTTPError(404)
    assert (error.status, error.detail) == (404, "Not Found")
    assert str(error) == "404 Not Found"


def test_an_http_error_keeps_its_detail_and_headers() -> None:
    error = HTTPError(429, "slow down", headers={"retry-after": "5"})
    assert (error.status, error.detail, error.headers) == (429, "slow down", {"retry-after": "5"})


def test_an_empty_detail_stays_empty() -> None:
    assert HTTPError(400, "").detail == ""


def test_an_unregistered_status_has_a_phrase_as_well() -> None:
    assert HTTPError(499).detail == "Error 499"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x",), r"write HTTPError\(400, 'x'\)"),
        ((None,), "not None"),
        ((404.0,), "not 404.0"),
        ((404, b"x"), "takes text or JSON data as its detail, not b'x'; decode it"),
        ((404, {"a": object()}), "text or JSON data as its detail, and JSON can't hold this dict: .*object"),
        ((404, ValueError("no")), "JSON can't hold this ValueError: .*ValueError"),
        ((404, ["\ud800"]), "JSON can't hold this list: .*surrogates"),
        ((404, CIRCLE), "JSON can't hold this list: .*recursion"),
    ],
)
def test_an_http_error_that_cannot_be_sent_is_a_result_error(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        HTTPError(*arguments)


@pytest.mark.parametrize("headers", ["a: b", 5, [5]], ids=repr)
def test_the_headers_of_an_http_error_are_a_dict(headers: Any) -> None:
    with pytest.raises(ResultError, match="takes a dict as its headers, not "):
        HTTPError(400, headers=headers)


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600])
def test_an_http_error_refuses_a_status_of_success(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        HTTPError(status)


def test_the_headers_of_an_error_are_its_own_copy() -> None:
    headers = {"a": "1"}
    error = HTTPError(400, headers=headers)
    headers["a"] = "2"
    assert error.headers == {"a": "1"}


@pytest.mark.parametrize("detail", [{"email": "is taken"}, [1, 2], 0, False, 1.5, {"nested": [{"a": None}]}], ids=repr)
def test_an_http_error_takes_any_json_value(detail: Any) -> None:
    error = HTTPError(422, detail)
    assert error.detail is detail
    assert str(error) == f"422 {detail}"


def test_invalid_input_has_a_path_and_a_sentence() -> None:
    error = InvalidInput("Expected `int`", "$.items[2].price")
    assert (error.status, error.detail, error.path, error.field) == (422, "Expected `int`", "$.items[2].price", None)
    assert str(error) == "422 Expected `int` - at `$.items[2].price`"
    assert str(InvalidInput("Expected `int`", "$.age", "age")) == "422 the field 'age': Expected `int`"
    assert str(InvalidInput("Expected `object`")) == "422 Expected `object`"


@pytest.mark.parametrize(
    "error",
    [
        HTTPError(404),
        HTTPError(429, "slow down", headers={"retry-after": "5"}),
        HTTPError(422, {"a": [1]}),
        InvalidInput("no", "$.a", "a"),
    ],
    ids=str,
)
def test_an_http_error_can_be_pickled_and_copied(error: HTTPError) -> None:
    for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert (vars(other), str(other), other.args) == (vars(error), str(error), error.args)
