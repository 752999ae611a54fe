from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta, Struct

from gaman._faults import fault_of


class Color(Enum):
    RED = "red"


class Item(Struct, forbid_unknown_fields=True):
    price: int


class Checked(Struct):
    low: int

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ValueError("Expected a price that is positive")


class Cat(Struct, tag=True):
    pass


class Dog(Struct, tag=True):
    pass


class Row(Struct, array_like=True):
    a: int
    b: int


@pytest.mark.parametrize(
    ("type_", "value", "detail"),
    [
        (int, '"x"', "isn't an integer"),
        (int | None, '"x"', "isn't an integer"),
        (int | float | bool, '"x"', "isn't true, false, an integer or a number"),
        (float, "[]", "isn't a number"),
        (Decimal, "[]", "isn't a number"),
        (Decimal, '"x"', "isn't a number"),
        (str, "1", "isn't a string"),
        (date, '"x"', "isn't a date"),
        (time, '"x"', "isn't a time"),
        (datetime, '"x"', "isn't a date and time"),
        (datetime, "1", "isn't a date and time"),
        (timedelta, '"x"', "isn't a duration"),
        (timedelta, '"P1Y"', "isn't a duration of days, hours, minutes and seconds"),
        (timedelta, '"P99999999999999D"', "is out of range"),
        (UUID, '"x"', "isn't a UUID"),
        (bytes, '"!"', "isn't base64"),
        (list[int], "1", "isn't a list"),
        (Item, "1", "isn't an object"),
        (None, "1", "isn't null"),
        (Color, '"x"', "isn't one of the choices"),
        (Literal["a", 1], "3", "isn't one of the choices"),
        (Annotated[int, Meta(ge=1)], "0", "is less than 1"),
        (Annotated[int, Meta(le=99)], "100", "is more than 99"),
        (Annotated[float, Meta(ge=0.5)], "0", "is less than 0.5"),
        (Annotated[float, Meta(gt=0)], "0", "isn't more than 0"),
        (Annotated[float, Meta(lt=9)], "9", "isn't less than 9"),
        (Annotated[int, Meta(multiple_of=5)], "3", "isn't a multiple of 5"),
        (Annotated[str, Meta(min_length=1)], '""', "is empty"),
        (Annotated[str, Meta(min_length=3)], '""', "has fewer than 3 characters"),
        (Annotated[str, Meta(max_length=1)], '"ab"', "has more than 1 character"),
        (Annotated[str, Meta(pattern="^[a-z]+$")], '"A"', "doesn't have the expected format"),
        (Annotated[list[int], Meta(max_length=2)], "[1,2,3]", "has more than 2 items"),
        (Annotated[dict[str, int], Meta(min_length=2)], "{}", "has fewer than 2 entries"),
        (Annotated[bytes, Meta(max_length=2)], '"AAAA"', "has more than 2 bytes"),
        (Annotated[datetime, Meta(tz=True)], '"2026-01-01T00:00:00"', "has no time zone"),
        (Annotated[datetime, Meta(tz=False)], '"2026-01-01T00:00:00Z"', "has a time zone"),
        (tuple[int, str], "[1]", "doesn't have 2 items"),
        (Row, "[1]", "doesn't have 2 items"),
        (float, "1e400", "is out of range"),
        (dict[int, str], '{"x":""}', "has a key that isn't an integer"),
        (Checked, '{"low":-1}', "Expected a price that is positive"),
    ],
)
def test_a_fault_is_told_in_plain_words(type_: Any, value: str, detail: str) -> None:
    outer = msgspec.defstruct("Outer", [("it", type_)])
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(f'{{"it":{value}}}', type=outer)
    assert fault_of(caught.value) == (detail, "$.it")


@pytest.mark.parametrize(
    ("type_", "value", "detail", "path"),
    [
        (Item, "{}", "is required", "$.price"),
        (list[Item], '[{"price":1,"x`y":2}]', "isn't a known field", "$[0].x`y"),
        (Cat | Dog, "{}", "is required", "$.type"),
        (Cat | Dog, '{"type":"x"}', "isn't one of the choices", "$.type"),
        (Item, "[]", "the input isn't an object", "$"),
        (dict[int, str], '{"x":""}', "the input has a key that isn't an integer", "$"),
        (Checked, '{"low":-1}', "Expected a price that is positive", "$"),
    ],
)
def test_the_path_of_a_fault_is_that_of_its_value(type_: Any, value: str, detail: str, path: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(value, type=type_)
    assert fault_of(caught.value) == (detail, path)


@pytest.mark.parametrize(
    "type_", [int, float, Decimal, bool, date, time, datetime, timedelta, UUID, Color, Literal["a"], list[int], Item]
)
def test_no_message_speaks_of_types_in_python(type_: Any) -> None:
    details: list[str] = []
    for value in (None, "x", 1.5, True, [], ["x"], {}, {"price": "x"}, {"x": 1}):
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            details.append(fault_of(error)[0])
    assert details
    assert [detail for detail in details if re.search(r"`|Expected|Invalid|Object", detail)] == []
