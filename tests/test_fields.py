from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from multidict import MultiDict

from gaman import App, Context
from gaman._fields import Fields

if TYPE_CHECKING:
    from tests.asgi import Fetch

FORMS = {
    "application/x-www-form-urlencoded": b"a=1&a=2",
    "multipart/form-data; boundary=b": b"".join(
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n%d\r\n' % number for number in (1, 2)
    )
    + b"--b--\r\n",
}


def test_fields_are_a_mapping_whose_getall_never_raises() -> None:
    fields = Fields(MultiDict([("a", "1"), ("b", "2"), ("a", "3")]))
    assert (fields["a"], fields.get("c"), fields.getall("a"), fields.getall("c")) == ("1", None, ["1", "3"], [])
    assert (fields.getall("c", None), fields.getall("c", default=["d"])) == (None, ["d"])
    assert (list(fields.items()), len(fields), "b" in fields) == ([("a", "1"), ("b", "2"), ("a", "3")], 3, True)
    with pytest.raises(KeyError):
        fields["c"]


def test_each_empty_list_is_a_new_one() -> None:
    fields = Fields(MultiDict[str]())
    fields.getall("a").append("1")
    assert fields.getall("a") == []


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", FORMS)
async def test_a_form_returns_an_empty_list_for_a_missing_field(fetch: Fetch, content_type: str) -> None:
    async def handler(ctx: Context) -> list[Any]:
        form = await ctx.form()
        return [
            form.fields.getall("a"),
            form.fields.getall("b"),
            form.files.getall("a"),
            await ctx.inputs("b"),
            await ctx.files("b"),
        ]

    response = await fetch(App({"/": handler}), "/", "POST", headers={"content-type": content_type}, body=FORMS[content_type])
    assert response.text == '[["1","2"],[],[],[],[]]'
