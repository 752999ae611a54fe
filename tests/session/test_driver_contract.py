"""Every driver keeps the contract."""

from __future__ import annotations

import pytest

from gaman.session.testing import CONTRACT, Check
from gaman_session.drivers.memory import MemoryDriver

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_memory_driver_keeps_the_contract(check: Check) -> None:
    driver = MemoryDriver()
    await driver.open()
    try:
        await check(driver)
    finally:
        await driver.close()


def _broken(name: str) -> type[MemoryDriver]:
    """A driver with one of the faults that drivers are known for."""

    class Broken(MemoryDriver):
        async def load(self, id, *, now):  # type: ignore[no-untyped-def]
            found = await super().load(id, now=now)
            return None if name == "forgets that it has ended" and not hasattr(found, "fields") else found

    return Broken
