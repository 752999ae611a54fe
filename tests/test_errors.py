from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from gaman import (
    App,
    ClientDisconnected,
    ConfigError,
    Context,
    GamanError,
    HeaderError,
    HTTPError,
    InvalidInput,
    MissingDependency,
    Response,
    ResultError,
    define_integration,
)
from gaman.errors import causes_of, checks_arguments, comes_of

if TYPE_CHECKING:
    from tests.asgi import Fetch

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


def test_an_argument_too_many_names_only_options_that_there_are() -> None:
    @checks_arguments
    def one(a: int) -> None: ...

    call: Any = one
    with pytest.raises(ConfigError, match=r"^one\(\) takes a without a name$"):
        call(1, 2)


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
    error = InvalidInput("isn't an integer", "$.items[2].price")
    assert (error.status, error.detail, error.path, error.field) == (422, "isn't an integer", "$.items[2].price", None)
    assert str(error) == "422 isn't an integer - at `$.items[2].price`"
    assert str(InvalidInput("isn't an integer", "$.age", "age")) == "422 the field 'age' isn't an integer"
    assert str(InvalidInput("the passwords differ")) == "422 the passwords differ"


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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("detail", "kind", "body"),
    [
        ("no", "text/plain; charset=utf-8", "no"),
        ("", "text/plain; charset=utf-8", ""),
        (None, "text/plain; charset=utf-8", "Unprocessable Entity"),
        ({"email": "is taken"}, "application/json", '{"email":"is taken"}'),
        ([1, None], "application/json", "[1,null]"),
        (0, "application/json", "0"),
        (False, "application/json", "false"),
    ],
)
async def test_a_detail_is_answered_as_text_if_it_is_text_and_otherwise_as_json(
    fetch: Fetch, detail: Any, kind: str, body: str
) -> None:
    async def handler(ctx: Context) -> None:
        raise HTTPError(422, detail, headers={"x-a": "1"})

    response = await fetch(App({"/": handler}), headers={"accept": "text/html"})
    headers = response.headers
    assert (response.status, headers["content-type"], headers["x-a"], headers.get("vary")) == (422, kind, "1", None)
    # Python 3.13 has the phrase of RFC 9110, "Unprocessable Content".
    assert response.text.replace("Content", "Entity") == body


@pytest.mark.anyio
async def test_a_hook_can_read_and_replace_the_detail_and_path_of_invalid_input(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> None:
        raise InvalidInput("is in the past", "$.day", "day")

    def on_error(ctx: Context, error: Exception) -> Response | None:
        assert isinstance(error, InvalidInput)
        return Response.json({"errors": {error.path: error.detail}}, error.status) if ctx.query else None

    app = App({"/": handler}, integrations=[define_integration(name="errors", on_error=on_error)])
    assert (await fetch(app, "/?a=1")).text == '{"errors":{"$.day":"is in the past"}}'
    assert (await fetch(app)).text == '{"detail":"is in the past","path":"$.day"}'
    assert (await fetch(app, headers={"accept": "text/plain"})).text == "the field 'day' is in the past"


@pytest.mark.anyio
async def test_vary_is_added_to_the_headers_of_the_error(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> None:
        error = InvalidInput("no")
        error.headers["vary"] = "Cookie"
        raise error

    assert (await fetch(App({"/": handler}))).headers.getall("vary") == ["Cookie", "Accept"]


# --- causes


def _caused(error: Exception, *causes: Exception) -> Exception:
    """Return *error*, whose causes are *causes*, each of the one before."""
    for effect, cause in zip((error, *causes), causes, strict=False):
        effect.__cause__ = cause
    return error


def test_the_causes_of_an_error_end_at_a_cycle() -> None:
    first, second, third = ValueError("first"), KeyError("second"), OSError("third")
    _caused(first, second, third, first)
    assert list(causes_of(first)) == [first, second, third]
    assert list(causes_of(None)) == []


def test_a_context_counts_as_a_cause() -> None:
    error = ValueError("effect")
    error.__context__ = OSError("cause")
    assert [type(each) for each in causes_of(error)] == [ValueError, OSError]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_caused(ValueError(), KeyError(), OSError()), True),
        (_caused(ValueError(), KeyError()), False),
        (ExceptionGroup("both", [OSError(), _caused(ValueError(), OSError())]), True),
        (ExceptionGroup("one", [OSError(), ValueError()]), False),
        (_caused(ValueError(), ExceptionGroup("nested", [ExceptionGroup("inner", [OSError()])])), True),
    ],
    ids=repr,
)
def test_an_error_comes_of_another_if_all_of_a_group_do(error: Exception, expected: bool) -> None:
    assert comes_of(error, OSError) is expected


def test_an_error_that_is_raised_again_out_of_its_group_ends_the_search() -> None:
    error = ValueError("in a group")
    error.__context__ = ExceptionGroup("the group", [error])
    assert comes_of(error, OSError) is False


def test_two_errors_of_a_group_may_have_one_cause() -> None:
    cause = OSError("shared")
    assert comes_of(ExceptionGroup("both", [_caused(ValueError(), cause), _caused(KeyError(), cause)]), OSError)
