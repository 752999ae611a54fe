from typing import Any

import pytest

from gaman import HeaderError, Headers, MutableHeaders, Response, ResultError

INJECTIONS = ["a\r\nSet-Cookie: b=c", "a\nb", "a\rb", "a\x00b", "\n", "a\x1fb", "a\x7fb"]


def test_names_are_found_whatever_their_case() -> None:
    headers = Headers([(b"content-type", b"text/plain")])
    assert headers["Content-Type"] == headers["CONTENT-TYPE"] == "text/plain"
    assert "CoNtEnT-tYpE" in headers


def test_the_first_of_two_fields_is_the_value_and_getall_returns_both() -> None:
    headers = Headers([(b"accept", b"a"), (b"x", b"1"), (b"accept", b"b")])
    assert headers["accept"] == "a"
    assert headers.getall("Accept") == ["a", "b"]
    assert (list(headers), len(headers)) == (["accept", "x"], 2)


def test_a_missing_field_is_none_an_empty_list_or_a_key_error() -> None:
    headers = Headers()
    assert headers.get("x") is None
    assert headers.getall("x") == []
    assert "x" not in headers
    with pytest.raises(KeyError, match="x"):
        headers["x"]


def test_octets_beyond_ascii_read_as_latin_1() -> None:
    assert Headers([(b"x", b"caf\xe9\xff")])["x"] == "caf\xe9\xff"


@pytest.mark.parametrize("name", ["caf\xe9", "\u20ac", "\ud800", ""])
def test_an_impossible_name_is_missing(name: str) -> None:
    assert Headers([(b"x", b"1")]).get(name) is None


def test_fields_of_a_generator_are_stored() -> None:
    headers = Headers((name, b"1") for name in (b"a", b"b"))
    assert dict(headers) == {"a": "1", "b": "1"}
    assert dict(headers) == {"a": "1", "b": "1"}


def test_setting_replaces_every_field_of_the_name() -> None:
    headers = MutableHeaders([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    headers["A"] = "4"
    assert headers.raw == [(b"b", b"2"), (b"a", b"4")]


def test_adding_keeps_the_fields_of_the_name() -> None:
    headers = MutableHeaders()
    headers.add("Set-Cookie", "a=1")
    headers.add("Set-Cookie", "b=2")
    assert headers.getall("set-cookie") == ["a=1", "b=2"]


def test_deleting_removes_every_field_of_the_name() -> None:
    headers = MutableHeaders([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    del headers["A"]
    assert headers.raw == [(b"b", b"2")]
    with pytest.raises(KeyError):
        del headers["a"]


def test_headers_are_a_whole_mutable_mapping() -> None:
    headers = MutableHeaders()
    headers.update({"A": "1", "b": "2"})
    assert headers.setdefault("a", "3") == "1"
    assert headers.pop("B") == "2"
    assert headers.pop("b", None) is None
    assert headers == {"a": "1"}


@pytest.mark.parametrize("value", INJECTIONS, ids=ascii)
def test_a_control_character_in_a_value_is_refused(value: str) -> None:
    headers = MutableHeaders([(b"x", b"old")])
    with pytest.raises(HeaderError):
        headers["x"] = value
    with pytest.raises(HeaderError):
        headers.add("x", value)
    assert headers.raw == [(b"x", b"old")]


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "a\x00", "caf\xe9", "a\u212a", "(a)"], ids=ascii)
def test_a_name_that_is_not_a_token_is_refused(name: str) -> None:
    headers = MutableHeaders()
    with pytest.raises(HeaderError, match="header name"):
        headers[name] = "1"
    with pytest.raises(HeaderError, match="header name"):
        headers.add(name, "1")
    assert headers.raw == []


@pytest.mark.parametrize("value", [1, None, b"1", 1.5, ("1",)], ids=repr)
def test_a_name_or_value_that_is_not_a_str_is_refused(value: Any) -> None:
    headers = MutableHeaders()
    with pytest.raises(HeaderError, match="value is a str, not"):
        headers["x"] = value
    with pytest.raises(HeaderError, match="value is a str, not"):
        Response("x", headers={"x": value})
    for pairs in ({value: "x"}, [(value, "x")]):
        with pytest.raises(HeaderError, match="name is a str, not"):
            Response("x", headers=pairs)
    assert headers.raw == []


@pytest.mark.parametrize("headers", ["a: b", 5, [("a",)], [5], {"a"}], ids=repr)
def test_the_headers_of_a_response_are_a_dict_or_pairs(headers: Any) -> None:
    with pytest.raises(HeaderError, match="headers are a dict, or pairs of str, not "):
        Response("x", headers=headers)


@pytest.mark.parametrize("value", [5, None, b"x", {"a": 1}], ids=repr)
def test_the_text_of_a_response_is_a_str(value: Any) -> None:
    for make in (Response.text, Response.html):
        with pytest.raises(ResultError, match=r"\(\) takes a str, not "):
            make(value)


def test_a_refused_value_names_itself() -> None:
    with pytest.raises(HeaderError, match=r"a\\r\\nb"):
        MutableHeaders()["x"] = "a\r\nb"


@pytest.mark.parametrize(
    ("value", "octets"), [("a\tb", b"a\tb"), ("caf\xe9", b"caf\xe9"), ("\x85\xa0", b"\x85\xa0"), ("", b"")], ids=ascii
)
def test_tabs_and_latin_1_are_allowed_in_a_value(value: str, octets: bytes) -> None:
    headers = MutableHeaders()
    headers["x"] = value
    assert headers.raw == [(b"x", octets)]


def test_a_value_beyond_latin_1_is_refused() -> None:
    with pytest.raises(HeaderError, match="percent-encode"):
        MutableHeaders()["x"] = "\u20ac"


def test_the_repr_of_headers_shows_their_fields() -> None:
    assert repr(MutableHeaders([(b"a", b"1")])) == "MutableHeaders([(b'a', b'1')])"
