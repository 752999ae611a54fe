"""The guide's chapter on deployment works with real servers: its units, nginx, image, Redis Cluster and replica set."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import gaman
from gaman.session import session
from gaman.testing import TestClient
from tests.servers import RedisServer, Server, find, free_port, start_all
from tests.serving import Program, running, until
from tests.test_readme import blocks

DOCUMENT = "examples/guide/deployment.md"
BINARIES = Path(sys.executable).parent


def file(path: str, language: str) -> str:
    """Return the block of the guide whose first line names the file *path*."""
    [text] = [block.code for block in blocks(DOCUMENT, language) if re.match(rf"# {re.escape(path)}[,\n]", block.code)]
    return text


def command(beginning: str) -> list[str]:
    """Return the words of the guide's only shell command with that *beginning*."""
    [line] = [line for block in blocks(DOCUMENT, "sh") for line in block.code.splitlines() if line.startswith(beginning)]
    return shlex.split(line)


def tool(name: str, package: str) -> str:
    """Return the path of *name*; without it the test is skipped, or fails in CI."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no {name} here; install it: apt-get install {package}")
    return path


def unit(name: str) -> configparser.SectionProxy:
    """Return the settings of a unit's service."""
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign] # as configparser's documentation shows
    parsed.read_string(file(f"/etc/systemd/system/{name}", "ini"))
    return parsed["Service"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of /srv/shop, and the environment file with the key."""
    (tmp_path / "main.py").write_text(blocks(DOCUMENT, "python")[0].code)
    program, *arguments = command("/srv/shop/.venv/bin/gaman key")
    assert Path(program).name == "gaman"
    settings = tmp_path / "shop.env"
    subprocess.run([sys.executable, "-m", "gaman", *arguments[:-1], str(settings)], check=True, timeout=60)
    return tmp_path


def granian_unit() -> configparser.SectionProxy:
    """Return the settings of a service with Granian's drop-in, whose empty line removes the first command."""
    service = unit("shop@.service")
    drop_in = unit("shop@.service.d/granian.conf")
    assert file("/etc/systemd/system/shop@.service.d/granian.conf", "ini").count("ExecStart=") == 2
    service.update(drop_in)
    return service


SERVICES = {"gaman": lambda: unit("shop@.service"), "granian": granian_unit}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment that systemd gives the service."""
    name, _, value = unit("shop@.service")["Environment"].partition("=")
    key = (folder / "shop.env").read_text().strip().partition("=")
    return {name: str(folder / Path(value).name), key[0]: key[2]}


@contextmanager
def instance(folder: Path, port: int, server: str = "gaman") -> Generator[Program]:
    """Serve as the unit does; the server has started when ExecStartPost returns."""
    service = SERVICES[server]()
    program, *arguments = shlex.split(service["ExecStart"].replace("%i", str(port)))
    assert program == f"/srv/shop/.venv/bin/{server}"
    with running("-m", server, *arguments, cwd=folder, env=environment(folder)) as served:
        curl, *options = shlex.split(service["ExecStartPost"].replace("%i", str(port)))
        subprocess.run([tool(Path(curl).name, "curl"), *options], check=True, timeout=60)
        yield served


@pytest.mark.parametrize("drop_ins", [[], ["granian.conf"]], ids=["", "with the drop-in"])
def test_systemd_accepts_the_units(drop_ins: list[str], folder: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    names = ["shop@.service", "shop-purge.service", "shop-purge.timer"]
    for name in names:
        text = file(f"/etc/systemd/system/{name}", "ini").replace("/srv/shop/.venv/bin/", f"{BINARIES}/")
        (folder / name).write_text(text)
    units = [str(folder / name.replace("@", "@8000")) for name in names]
    shutil.copy(folder / names[0], units[0])
    for drop_in in drop_ins:
        place = folder / f"shop@8000.service.d/{drop_in}"
        place.parent.mkdir()
        place.write_text(
            file(f"/etc/systemd/system/shop@.service.d/{drop_in}", "ini").replace("/srv/shop/.venv/bin/", f"{BINARIES}/")
        )
    verified = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("server", SERVICES)
def test_an_instance_serves_and_stops_without_an_error_and_the_next_has_its_sessions(server: str, folder: Path) -> None:
    port = free_port()
    with instance(folder, port, server) as served:
        first = httpx.get(f"http://127.0.0.1:{port}/")
        assert served.stop() == 0
        assert "Traceback" not in served.stderr
    name, _, value = first.headers["set-cookie"].partition(";")[0].partition("=")
    with instance(folder, port, server):
        again = httpx.get(f"http://127.0.0.1:{port}/", headers={"cookie": f"{name}={value}"})
    assert [first.json(), again.json()] == [{"visits": 1}, {"visits": 2}]
    program, *arguments = shlex.split(unit("shop-purge.service")["ExecStart"])
    assert program == "/srv/shop/.venv/bin/gaman"
    purged = subprocess.run(
        [sys.executable, "-m", "gaman", *arguments],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert purged.stdout == "gaman: session: 0 removed\n"


def issue_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a new certificate for localhost, which it signs itself, and of its key."""
    pem, key = folder / "shop.pem", folder / "shop.key"
    issue = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*issue.split(), "-out", str(pem), "-keyout", str(key)], check=True, capture_output=True, timeout=60)
    return pem, key


class Proxy(NamedTuple):
    """An nginx with the guide's configuration; *client* connects to it by name, and trusts its certificate."""

    client: httpx.Client
    plain: str
    backends: list[int]


@contextmanager
def nginx(folder: Path, without: str = "") -> Generator[Proxy]:
    """Run nginx with the guide's file on free ports; lines that contain *without* are removed."""
    program = tool("nginx", "nginx-light")
    pem, key = issue_certificate(folder)
    plain, secure, *backends = (free_port() for _ in range(4))
    text = file("/etc/nginx/conf.d/shop.conf", "nginx")
    places = {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ": f"listen 127.0.0.1:{secure} ",
        ":8000": f":{backends[0]}",
        ":8001": f":{backends[1]}",
        "/etc/ssl/shop.pem": str(pem),
        "/etc/ssl/shop.key": str(key),
        "shop.example": "localhost",
    }
    for old, new in places.items():
        assert old in text
        text = text.replace(old, new)
    if without:
        assert without in text
        text = "\n".join(line for line in text.splitlines() if without not in line)
    (folder / "shop.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off; worker_processes 1;\nevents {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; include {folder}/shop.conf; }}\n"
    )
    start = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    tested = subprocess.run([*start, "-t"], capture_output=True, text=True, check=False, timeout=60)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr, tested.stderr
    with subprocess.Popen(start) as process:
        try:
            until((folder / "nginx.pid").exists, "nginx to start")
            trusting = ssl.create_default_context(cafile=str(pem))
            with httpx.Client(base_url=f"https://localhost:{secure}", verify=trusting, timeout=30) as client:
                yield Proxy(client, f"http://localhost:{plain}", backends)
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)


ORIGIN = """
import sys
import gaman
from gaman.session import session

async def tell(ctx):
    return {"url": ctx.url, "ip": ctx.ip}

async def fill(ctx):
    await ctx.session.set("filled", "x" * 2860)
    return gaman.Response.text("full", headers={"x-more": "y" * 200})

gaman.serve({"/tell": tell, "/fill": fill}, integrations=[session("a secret of this test, long enough")], port=int(sys.argv[1]))
"""


@contextmanager
def serving_origin(folder: Path, port: int) -> Generator[Program]:
    (folder / "origin.py").write_text(ORIGIN)
    with running("origin.py", str(port), cwd=folder) as program:
        assert program.port == port
        yield program


def test_behind_nginx_an_application_knows_the_browsers_url_and_address_and_no_client_can_forge_them(folder: Path) -> None:
    with nginx(folder) as proxy, serving_origin(folder, proxy.backends[0]) as program:
        forged = {
            "x-forwarded-for": "6.6.6.6",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "evil.example",
            "forwarded": "for=6.6.6.6;proto=http;host=evil.example",
        }
        for headers in ({}, forged):
            response = proxy.client.get("/tell?a=1", headers=headers)
            assert response.json() == {"url": "https://localhost/tell?a=1", "ip": "127.0.0.1"}
        assert response.headers["strict-transport-security"] == "max-age=31536000"
        moved = httpx.get(f"{proxy.plain}/tell?a=1")
        assert (moved.status_code, moved.headers["location"]) == (308, "https://localhost/tell?a=1")
        cookie = proxy.client.get("/fill").headers["set-cookie"]
        assert "Secure" in cookie
        assert "plain HTTP" not in program.stderr


@pytest.mark.parametrize(("without", "status"), [("", 200), ("proxy_buffer", 502)], ids=["", "without proxy_buffer_size"])
def test_a_full_cookie_passes_through_nginx_only_with_the_guides_buffer(folder: Path, without: str, status: int) -> None:
    with nginx(folder, without) as proxy, serving_origin(folder, proxy.backends[0]):
        response = proxy.client.get("/fill")
        assert response.status_code == status
        if status == 200:
            assert 3900 < len(response.headers["set-cookie"]) <= 4096
            assert proxy.client.get("/tell").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVICES)
def test_restarting_one_instance_after_the_other_loses_no_request(server: str, folder: Path) -> None:
    with nginx(folder) as proxy, ExitStack() as stack:
        serving = {port: stack.enter_context(instance(folder, port, server)) for port in proxy.backends}
        [script] = [block.code for block in blocks(DOCUMENT, "sh") if block.code.startswith("for port")]
        # There may be no systemd, so the script asks this test to restart the instance.
        for old, new in {
            "8000 8001": " ".join(map(str, proxy.backends)),
            "/etc/nginx/conf.d": str(folder),
            "systemctl reload nginx": f"kill -HUP $(cat {folder}/nginx.pid)",
            'systemctl restart "shop@$port"': "echo $port; read answer",
        }.items():
            assert old in script
            script = script.replace(old, new)
        with (
            visiting(proxy.client) as statuses,
            subprocess.Popen(["sh", "-e", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell,
        ):
            assert shell.stdin is not None
            assert shell.stdout is not None
            for line in shell.stdout:
                assert serving[int(line)].stop() == 0
                stack.enter_context(instance(folder, int(line), server))
                shell.stdin.write("\n")
                shell.stdin.flush()
            assert shell.wait(60) == 0
            before = len(statuses)
            until(lambda: len(statuses) > before + 50, "visits")
    assert set(statuses) == {200}


RENEWED = """
import os, sys
import gaman

async def take(ctx):
    return {"pid": os.getpid(), "size": len(await ctx.body())}

gaman.serve({"/": {"POST": take}}, port=int(sys.argv[1]), workers=2)
"""


@pytest.mark.slow
def test_sighup_loses_no_post_behind_nginx(folder: Path) -> None:
    (folder / "renewed.py").write_text(RENEWED)
    with ExitStack() as stack:
        proxy = stack.enter_context(nginx(folder))
        programs = {port: stack.enter_context(running("renewed.py", str(port), cwd=folder)) for port in proxy.backends}

        def workers() -> set[int]:
            return {httpx.post(f"http://127.0.0.1:{port}/").json()["pid"] for port in proxy.backends for _ in range(8)}

        assert {program.port for program in programs.values()} == {*proxy.backends}
        until(lambda: len(workers()) == 4, "all workers")
        with visiting(proxy.client) as statuses:
            for _ in range(4):
                before, count = workers(), len(statuses)
                for program in programs.values():
                    program.send_signal(signal.SIGHUP)
                until(lambda old=before: not workers() & old, "new workers")  # type: ignore[misc]
                until(lambda old=count: len(statuses) > old + 100, "visits")  # type: ignore[misc]
        assert set(statuses) == {200}


@contextmanager
def visiting(client: httpx.Client) -> Generator[list[int]]:
    """Let four visitors send requests while the block lasts; yield the statuses of their responses."""
    statuses: list[int] = []
    done = threading.Event()

    def visit() -> None:
        while not done.is_set():
            # Each request has its own connection, because nginx may close an idle one at the moment of a request.
            statuses.append(client.post("/", headers={"connection": "close"}).status_code)

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(statuses) > 50, "visits")
        yield statuses
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_the_parts_of_the_image_exist_and_its_command_serves(folder: Path) -> None:
    lines = [line.split(maxsplit=1) for line in file("Dockerfile", "dockerfile").splitlines()[1:]]
    instructions = dict(lines)
    assert list(instructions) == ["FROM", "WORKDIR", "RUN", "COPY", "USER", "CMD"]
    assert (folder / instructions["COPY"].split()[0]).exists()
    assert re.fullmatch(r'pip install --no-cache-dir "gaman\[(redis|sql|mongodb|all)\]"', instructions["RUN"])
    words: list[str] = eval(instructions["CMD"])
    assert words[:2] == ["gaman", "serve"]
    port = free_port()
    words[words.index("8000")] = str(port)
    words[words.index("0.0.0.0")] = "127.0.0.1"
    with running("-m", *words, cwd=folder, env=environment(folder)) as served:
        assert httpx.get(f"{served.url}/").json() == {"visits": 1}
        assert served.stop() == 0


def test_the_script_that_runs_granian_serves(folder: Path) -> None:
    port = free_port()
    (folder / "serve.py").write_text(file("serve.py", "python").replace("port=8000", f"port={port}"))
    with running("serve.py", cwd=folder, env=environment(folder)) as served:
        until(lambda: served.stdout.count("Started worker-") >= 2, "both workers")
        assert httpx.get(f"http://127.0.0.1:{port}/").json() == {"visits": 1}
        assert served.stop() == 0


def test_granian_serves_https_and_http2(folder: Path) -> None:
    certificate, key = issue_certificate(folder)
    words = command("granian main:app")
    port = free_port()
    own = {"0.0.0.0": "127.0.0.1", "443": str(port), "/etc/ssl/shop.pem": str(certificate), "/etc/ssl/shop.key": str(key)}
    assert own.keys() <= set(words)
    with running("-m", *(own.get(word, word) for word in words), cwd=folder, env=environment(folder)) as served:
        until(lambda: "Started worker-1" in served.stdout, "the worker")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusting, http2=True) as client:
            responses = [client.get("/") for _ in range(2)]
        assert [response.json() for response in responses] == [{"visits": 1}, {"visits": 2}]
        assert responses[0].http_version == "HTTP/2"
        assert "Secure" in responses[0].headers["set-cookie"]
        assert served.stop() == 0


class GuideRedis(RedisServer):
    """A redis-server with the guide's file *path*, its own port and its own folder; it is a replica of *master*, if any."""

    password = "change-me"

    def __init__(self, path: str = "/etc/redis/redis.conf", master: RedisServer | None = None) -> None:
        super().__init__()
        text = file(path, "conf")
        for pattern, own in {
            r"^port \d+": f"port {self.port}",
            r"^dir /var/lib/redis.*": f"dir {self.folder}",
            "^bind 0.0.0.0": "bind 127.0.0.1",
        }.items():
            text, count = re.subn(pattern, own, text, flags=re.MULTILINE)
            assert count == 1, pattern
        text = text.replace("10.0.0.1 6379", f"127.0.0.1 {master.port}" if master else "")
        follows = f"\nreplicaof 127.0.0.1 {master.port}\n" if master and "sentinel" not in path else ""
        self.config.write_text(text + follows)

    def command(self) -> list[str]:
        return [find("redis-server"), str(self.config)]

    def client(self) -> Any:
        client = super().client()
        client.connection_pool.connection_kwargs["password"] = self.password
        return client


class GuideSentinel(GuideRedis):
    """A Sentinel with the guide's file."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__("/etc/redis/sentinel.conf", master)

    def command(self) -> list[str]:
        return [*super().command(), "--sentinel"]

    def client(self) -> Any:
        return RedisServer.client(self)


def redis_cli(nodes: Iterable[RedisServer], *beginning: str) -> str:
    """Run the guide's redis-cli command with that *beginning* on *nodes* instead of its addresses; return its output."""
    words = command(" ".join(beginning))
    addresses = [word for word in words if re.fullmatch(r"10\.0\.0\.\d:\d+", word)]
    real = dict(zip(addresses, (node.address for node in nodes), strict=False))
    arguments = [real.get(word, word) for word in words[1:]]
    program = Path(find("redis-server")).with_name("redis-cli")
    name, _, value = command("export REDISCLI_AUTH")[1].partition("=")
    done = subprocess.run(
        [program, *arguments], env={**os.environ, name: value}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_redis_cluster_keeps_sessions_and_refuses_changes_that_no_replica_gets() -> None:
    nodes = [GuideRedis("/etc/redis/7000.conf") for _ in range(6)]
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.close)
        start_all(nodes)
        assert "[OK] All 16384 slots covered" in redis_cli(nodes, "redis-cli --cluster create")
        until(lambda: all(is_in_sync(node) for node in nodes), "the replicas to be in sync", seconds=60)
        assert "[OK] All 16384 slots covered" in redis_cli(nodes, "redis-cli --cluster check")

        url = f"redis+cluster://:{GuideRedis.password}@" + ",".join(node.address for node in nodes[:3])
        async with TestClient(counting({"type": "redis", "url": url, "wait_replicas": 1})) as client:
            assert [(await client.get("/")).text for _ in range(3)] == ["1", "2", "3"]
            masters = [node for node in nodes if role(node) == "master"]
            for node in nodes:
                if node not in masters:
                    node.kill()
            until(lambda: all(has_no_replica(node) for node in masters), "the masters to notice that they have no replica")
            assert (await client.get("/")).status_code == 503
            assert (await client.get("/read")).text == "3"


@pytest.mark.slow
@pytest.mark.anyio
async def test_sentinels_replace_a_master_and_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    master = GuideRedis()
    servers = [master, *(GuideRedis(master=master) for _ in range(2))]
    sentinels = [GuideSentinel(master) for _ in range(3)]
    with ExitStack() as stack:
        for each in (*servers, *sentinels):
            stack.callback(each.close)
        start_all(servers)
        start_all(sentinels)
        until(lambda: all(knows_all(sentinel) for sentinel in sentinels), "the Sentinels to know all", seconds=60)

        url = f"redis+sentinel://:{GuideRedis.password}@{','.join(each.address for each in sentinels)}/shop"
        async with TestClient(counting({"type": "redis", "url": url, "wait_replicas": 1})) as client:
            [warning] = caplog.messages
            assert "wait_replicas=1, and Redis has 2 replicas" in warning
            assert [(await client.get("/")).text for _ in range(3)] == ["1", "2", "3"]
            master.kill()
            assert (await client.get("/")).text == "4"
            assert f"the Redis master of shop was {master.address}" in caplog.messages[1]


def knows_all(sentinel: RedisServer) -> bool:
    with sentinel.client() as client:
        state = client.sentinel_master("shop")
        replicas = client.sentinel_slaves("shop")
    linked = [replica for replica in replicas if replica["master-link-status"] == "ok"]
    return len(linked) == 2 and int(state["num-other-sentinels"]) == 2


def counting(driver: dict[str, Any]) -> gaman.App:
    async def count(ctx: gaman.Context) -> str:
        return str(await ctx.session.update("count", lambda count: count + 1, 0))

    async def read(ctx: gaman.Context) -> str:
        return str(await ctx.session.get("count"))

    return gaman.App({"/": count, "/read": read}, integrations=[session("a secret of this test, long enough", driver)])


def role(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.info("replication")["role"])


def is_in_sync(node: RedisServer) -> bool:
    with node.client() as client:
        state = client.info("replication")
        whole = "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO"))
    return whole and (state.get("master_link_status") == "up" if state["role"] == "slave" else state["min_slaves_good_slaves"] == 1)


def has_no_replica(node: RedisServer) -> bool:
    with node.client() as client:
        return int(client.info("replication")["min_slaves_good_slaves"]) == 0


class Member(Server):
    """A mongod with the guide's file, its own port, its own folder and its own key file."""

    def __init__(self, key: Path) -> None:
        super().__init__("mongod")
        self._key = key

    def command(self) -> list[str]:
        text = file("/etc/mongod.conf", "yaml")
        for old, new in {
            "/var/lib/mongodb": str(self.folder),
            "port: 27017": f"port: {self.port}",
            "bindIp: 0.0.0.0": "bindIp: localhost",
            "/etc/mongodb.key": str(self._key),
        }.items():
            assert old in text
            text = text.replace(old, new)
        (self.folder / "mongod.conf").write_text(text)
        return [
            *super().command(),
            "--config",
            str(self.folder / "mongod.conf"),
            "--wiredTigerCacheSizeGB",
            "0.25",
            "--nounixsocket",
        ]

    def is_ready(self) -> bool:
        import pymongo

        with pymongo.MongoClient[dict[str, Any]](self.address, directConnection=True, serverSelectionTimeoutMS=200) as client:
            return bool(client.admin.command("ping"))


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_replica_set_keeps_sessions_for_a_user_without_other_rights(tmp_path: Path) -> None:
    key = tmp_path / "mongodb.key"
    for line in [command("openssl rand"), command("chmod 400")]:
        words = [word.replace("/etc/mongodb.key", str(key)) for word in line]
        subprocess.run(shlex.join(words).replace("'>'", ">"), shell=True, check=True, timeout=60)
    [code] = [block.code for block in blocks(DOCUMENT, "python") if "def set_up" in block.code]
    defined: dict[str, Any] = {}
    exec(code, defined)
    members = [Member(key) for _ in range(3)]
    with ExitStack() as stack:
        for member in members:
            stack.callback(member.close)
        start_all(members)
        addresses = [member.address for member in members]
        defined["set_up"](addresses[0], addresses, "the admin's", "the shop's")
        uri = f"mongodb://shop:the%20shop's@{','.join(addresses)}/?replicaSet=shop&authSource=admin"
        async with TestClient(counting({"type": "mongodb", "db_name": "shop", "uri": uri})) as client:
            assert [(await client.get("/")).text for _ in range(3)] == ["1", "2", "3"]
            members[0].kill()
            assert (await client.get("/")).text == "4"
