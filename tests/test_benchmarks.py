from __future__ import annotations

import pytest

from benchmarks import peers
from benchmarks.contenders import ASGI
from benchmarks.in_process import CASES, Case, build_peers, enter

pytestmark = pytest.mark.anyio


async def answer(case: Case, entrant: ASGI) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body; of a cookie, its attributes only."""
    _, (status, headers, body) = await enter(case, entrant)
    if b"set-cookie" in headers:
        headers[b"set-cookie"] = headers[b"set-cookie"].partition(b"; ")[2]
    return status, headers, body


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_the_floor_and_gaman_give_the_same_answer(case: Case) -> None:
    app = case.app()
    await app.load()
    expected = await answer(case, case.floor)
    assert expected[0] == 200
    assert (b"set-cookie" in expected[1]) == (case.path == "/write")
    assert await answer(case, app) == expected
    await app.shutdown()


@pytest.mark.parametrize("with_sessions", [False, True])
async def test_a_peer_that_is_not_installed_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch, with_sessions: bool) -> None:
    def lack(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(peers, "import_module", lack)
    present, absent = await build_peers(with_sessions)
    assert present == {}
    assert list(absent) == [peer.name for peer in peers.PEERS]
    assert absent["Litestar"] == "not installed: litestar"
    assert (absent["Falcon"] == "has no sessions") == with_sessions
