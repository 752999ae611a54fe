"""Types that msgspec decodes into: their parts, and the defaults of dataclasses, which msgspec leaves to the class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from msgspec.inspect import DataclassType, Type

_SEQUENCES = frozenset({list, tuple, set, frozenset})
_MISSING = object()


class _Plan(NamedTuple):
    """What defaults_setter() does with the instances of a class."""

    defaults: dict[str, Any]
    names: list[str]
    """The attributes whose values hold a dataclass with defaults, at any depth."""


def parts_of(type: Any, *, required: bool = False) -> Iterator[Type]:
    """Yield each type that a value of *type* is made of; if *required*, without those of fields that have a default."""
    from msgspec import inspect  # noqa: PLC0415 - takes a millisecond to load, and many applications never need it

    seen: set[int] = set()
    # A type that refers to itself is its own part.
    waiting = [inspect.type_info(type)]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += _parts(node, required=required)


def _parts(node: Type, *, required: bool = False) -> Iterator[Type]:
    from msgspec import inspect  # noqa: PLC0415

    for name in node.__struct_fields__:
        value = getattr(node, name)
        for each in value if isinstance(value, tuple) else (value,):  # pyright: ignore[reportUnknownVariableType]
            if isinstance(each, inspect.Type):
                yield each
            elif isinstance(each, inspect.Field) and (each.required or not required):
                yield each.type


def defaults_setter(type: Any) -> Callable[[Any], None] | None:
    """Return a function that sets the missing defaults of the dataclasses in a decoded value of *type*; None if there are none.

        value = msgspec.json.decode(body, type=Search)
        if (set_defaults := gaman.defaults_setter(Search)) is not None:
            set_defaults(value)

    msgspec decodes a dataclass without setting the defaults of its class, and then encodes it without them. Keep the function,
    because making it takes far longer than calling it.
    """
    from msgspec import inspect  # noqa: PLC0415

    nodes = [*parts_of(type)]
    defaults = {id(node): found for node in nodes if isinstance(node, inspect.DataclassType) and (found := _defaults(node))}
    if not defaults:
        return None
    leading, before = {*defaults}, 0
    while len(leading) > before:
        before = len(leading)
        leading |= {id(node) for node in nodes if any(id(part) in leading for part in _parts(node))}
    plans: dict[Any, _Plan] = {}
    for node in nodes:
        if id(node) in leading and isinstance(node, (inspect.DataclassType, inspect.StructType, inspect.NamedTupleType)):
            # A generic class may be there with several arguments.
            plan = plans.setdefault(getattr(node.cls, "__origin__", node.cls), _Plan({}, []))
            plan.defaults.update(defaults.get(id(node), {}))
            plan.names.extend(field.name for field in node.fields if id(field.type) in leading)

    def set_defaults(value: Any) -> None:
        kind = value.__class__
        if (plan := plans.get(kind)) is not None:
            if plan.defaults:
                own = value.__dict__
                for name, default in plan.defaults.items():
                    own.setdefault(name, default)
            for name in plan.names:
                set_defaults(getattr(value, name))
        elif kind in _SEQUENCES:
            for item in value:
                set_defaults(item)
        elif kind is dict:
            for item in value.values():
                set_defaults(item)

    return set_defaults


def _defaults(node: DataclassType) -> dict[str, Any]:
    """Return the defaults that instances lack. msgspec calls factories, and sets the attributes that have slots."""
    return {field.name: field.default for field in node.fields if getattr(node.cls, field.name, _MISSING) is field.default}
