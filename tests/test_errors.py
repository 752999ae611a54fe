from typing import Any

import pytest

from gaman import ClientDisconnected, ConfigError, GamanError, HeaderError, HTTPError, MissingDependency, ResultError


@pytest.mark.parametrize("error", [ClientDisconnected, ConfigError, HeaderError, HTTPError, MissingDependency, ResultError])
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
        ((404, {"a": 1}), "a str as its detail, not {'a': 1}; return Response.json"),
        ((404, b"x"), "a str as its detail, not b'x'"),
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
