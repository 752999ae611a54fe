"""Fields of a query or a form: decoded into a dataclass, Struct or TypedDict."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gaman._faults import fault_of, out_of_range
from gaman._fields import Fields
from gaman._forms import UploadedFile
from gaman._texts import EMPTY, Reader, as_text, describe, members_of, reader, unresolved
from gaman._types import defaults_setter
from gaman.errors import InvalidInput, ResultError

if TYPE_CHECKING:
    from msgspec.inspect import Type

_name_in = re.compile(r"\$\.(.+?)(?:\[[0-9]+\])?", re.DOTALL).fullmatch


class _Field(NamedTuple):
    """A field of a type, by the name that requests have for it."""

    name: str
    read: Reader
    is_file: bool = False
    is_list: bool = False
    is_nullable: bool = False
    is_required: bool = False


class _Plan(NamedTuple):
    """How to decode into a type."""

    fields: tuple[_Field, ...]
    forbids_unknown: bool = False
    set_defaults: Callable[[Any], None] | None = None


def decode_fields(type: Any, call: str, fields: Fields[str], files: Fields[UploadedFile] | None = None) -> Any:
    """Return the *fields* of a query, or the *fields* and *files* of a form, decoded into *type*.

    InvalidInput is raised for input that doesn't fit, and ResultError, which names the *call*, for a type that can't hold fields.
    """
    try:
        plan = _plan_of(type, call, files is not None)
    except ResultError:
        raise
    except TypeError:
        # An unhashable object isn't a type.
        raise ResultError(_takes(type, call)) from None
    values: dict[str, Any] = {}
    for field in plan.fields:
        name = field.name
        texts = fields.getall(name)
        given: list[Any] = texts
        if field.is_file:
            given = files.getall(name) if files is not None else []
            if not given and any(texts):
                raise _invalid("isn't a file; send the form as multipart/form-data", name)
        # Two parsers of one request may differ in which value counts, so none does.
        if len(given) > 1 and not field.is_list:
            raise _invalid("has more than one value", name)
        found = given if field.is_file else [value for text in given if (value := field.read(text)) is not EMPTY]
        if found:
            values[name] = found if field.is_list else found[0]
        elif field.is_required:
            if not field.is_nullable and not field.is_list:
                raise _invalid("is required", name)
            values[name] = None if field.is_nullable else []
    if plan.forbids_unknown:
        # msgspec's error names the first one.
        values = dict.fromkeys((*fields, *(files or ()))) | values
    cause = None
    if (fault := out_of_range(values)) is None:
        try:
            decoded = msgspec.convert(values, type)
        except msgspec.ValidationError as error:
            fault, cause = fault_of(error), error
        else:
            if plan.set_defaults is not None:
                plan.set_defaults(decoded)
            return decoded
    detail, path = fault
    named = _name_in(path)
    raise InvalidInput(detail, path, None if named is None else named[1]) from cause


def _invalid(detail: str, name: str) -> InvalidInput:
    return InvalidInput(detail, f"$.{name}", name)


def _takes(type: Any, call: str) -> str:
    return f"{call} takes a dataclass, a Struct or a TypedDict, not {describe(type)}"


# Saves 30 microseconds a request, because handlers decode into few types.
@lru_cache(maxsize=1024)
def _plan_of(type: Any, call: str, has_files: bool) -> _Plan:
    from msgspec import inspect  # noqa: PLC0415 - takes a millisecond to load, and many applications never need it

    takes = _takes(type, call)
    try:
        [node] = members_of(inspect.type_info(type))
    except NameError as error:
        raise unresolved(type, call, error) from None
    except TypeError as error:
        raise ResultError(f"{takes}: {error}") from None
    except ValueError:
        raise ResultError(takes) from None
    if not isinstance(node, (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)):
        raise ResultError(takes)
    fields = [
        _field(field.encode_name, field.type, field.required, f"{call}: the field {field.name!r} of {describe(type)}")
        for field in node.fields
    ]
    if not has_files and any(field.is_file for field in fields):
        raise ResultError(f"{call}: {describe(type)} has a file, which a query can't hold; write `await ctx.form_as(...)`")
    if not isinstance(node, inspect.StructType):
        return _Plan(tuple(fields), set_defaults=defaults_setter(type))
    if node.array_like:
        raise ResultError(f"{takes} that is array_like, because fields have names")
    if node.tag_field is not None:
        fields.append(_Field(node.tag_field, as_text))
    return _Plan(tuple(fields), node.forbid_unknown_fields)


def _field(name: str, node: Type, is_required: bool, where: str) -> _Field:
    """Return the field of a type; ResultError, which says *where*, for one that no field of a request becomes."""
    from msgspec import inspect  # noqa: PLC0415

    members = members_of(node)
    is_nullable = any(isinstance(member, inspect.NoneType) for member in members)
    is_list = False
    items = [member for member in members if not isinstance(member, inspect.NoneType)]
    if len(items) == 1 and isinstance(items[0], (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)):
        is_list = True
        members = items = members_of(items[0].item_type)
    if all(isinstance(item, inspect.CustomType) and item.cls is UploadedFile for item in items):
        return _Field(name, as_text, True, is_list, is_nullable, is_required)
    if (read := reader(members)) is None:
        takes = "str, int, float, bool, date, UUID, an Enum, a Literal, UploadedFile, or a list of one of them"
        raise ResultError(f"{where} has a type that no text becomes; take {takes}")
    return _Field(name, read, False, is_list, is_nullable, is_required)
