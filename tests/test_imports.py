"""What importing gaman loads, and what is loaded by the time that a server takes requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import SERVES, Connection, request, running_script

# Only some applications need these, or a server has loaded them before the application.
LATE = {
    *("gaman._server", "uvicorn", "httptools", "click", "watchfiles", "multiprocessing"),
    *("gaman._multipart", "python_multipart", "tempfile", "shutil", "email.utils"),
    *("asyncio", "ssl", "socket"),
    *("gaman_session.drivers.memory", "gaman_session.drivers.file", "redis", "aiosqlite", "pymongo", "bson", "opentelemetry"),
}
SESSION = {"gaman_session", "cryptography"}

# Prints the modules that *code* has loaded.
SCRIPT = """
import sys
before = set(sys.modules)
{code}
import json
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(code: str) -> set[str]:
    """Return the names of the modules that *code* loads in a new process."""
    command = [sys.executable, "-c", SCRIPT.format(code=code)]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize("code", ["import gaman", "from gaman import *", "import gaman; dir(gaman); gaman.serve; gaman.App({})"])
def test_importing_gaman_loads_neither_a_server_nor_the_session(code: str) -> None:
    loaded = loaded_by(code)
    assert "gaman._app" in loaded
    assert loaded & (LATE | SESSION) == set()


@pytest.mark.parametrize(
    "code",
    [
        "from gaman.session import session",
        "from gaman.session import *",
        "from gaman.session import session; session(secret='0123456789abcdef' * 4)",
    ],
)
def test_importing_the_session_loads_neither_a_server_nor_a_driver(code: str) -> None:
    loaded = loaded_by(code)
    assert loaded >= SESSION
    assert loaded & LATE == set()


def test_importing_the_sessions_middleware_loads_neither_starlette_nor_a_server() -> None:
    loaded = loaded_by("from gaman.session.asgi import Session, SessionMiddleware, get_session, session")
    assert "gaman_session.asgi" in loaded
    assert {name for name in loaded if name.partition(".")[0] in {"starlette", "fastapi"}} == set()
    assert loaded & LATE == set()


APP = """
import sys
import gaman
from gaman import Context, Response
from gaman.session import session

async def loaded(ctx: Context) -> Response:
    return Response.json(sorted(sys.modules))

async def change(ctx: Context) -> Response:
    await ctx.session.set("user", await ctx.json())
    return Response.json(await ctx.session.get("user"))

routes = {"/loaded": loaded, "/change": {"POST": change}}
integrations = [session(driver={"type": KIND}, secret="0123456789abcdef" * 4, secure=False)]
"""


@pytest.mark.parametrize("kind", ["cookies", "memory"])
@pytest.mark.parametrize("server", SERVES)
def test_a_request_with_a_body_and_a_session_loads_nothing(server: str, kind: str, tmp_path: Path) -> None:
    source = APP.replace("KIND", repr(kind)) + SERVES[server]
    with running_script(source, tmp_path) as program, Connection(program.port) as connection:
        before = set(json.loads(connection.fetch(request("/loaded")).body))
        changed = connection.fetch(request("/change", method="POST", body=b'{"id": 1}'))
        assert (changed.status, changed.body) == (200, b'{"id":1}')
        assert set(json.loads(connection.fetch(request("/loaded")).body)) == before
        assert "uvicorn" in before
