"""The `gaman` command: create a key, serve an application, remove expired data."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import shlex
import stat
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gaman._app import App
from gaman._application import check_application, kind_of
from gaman._asgi import Application
from gaman._server import run
from gaman._tracebacks import exc_info_of, explain, location_of
from gaman.errors import ConfigError, GamanError

_has_key = re.compile(rb"^(\xef\xbb\xbf)?\s*(export\s+)?GAMAN_KEY\s*=", re.MULTILINE).search


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. SystemExit has its status, and the message if it failed."""
    parser = argparse.ArgumentParser(prog="gaman", description="A minimal async web framework.")
    commands = parser.add_subparsers(required=True, metavar="command")

    key = commands.add_parser("key", help="print a new secret for sessions, or add it to a file of settings")
    key.add_argument("--env", type=Path, metavar="FILE", help="add GAMAN_KEY= to FILE instead of printing")
    key.set_defaults(run=_key)

    serve = commands.add_parser("serve", help="serve an App")
    serve.add_argument("app", help="the App, such as main:app")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=3431)
    serve.add_argument("--workers", type=int, default=1, help="number of processes")
    serve.add_argument("--reload", action="store_true", help="restart when a source file changes")
    serve.add_argument("--trusted-proxies", metavar="LIST", help="addresses and networks, with commas")
    serve.add_argument("--allowed-hosts", metavar="LIST", help="the hosts that the App answers, with commas")
    serve.add_argument("--timeout-request", type=float, default=30, metavar="SECONDS", help="how long a client may be silent")
    serve.add_argument("--max-connections", type=int, metavar="COUNT", help="limit of each process; further connections get 503")
    serve.add_argument("--timeout-graceful-shutdown", type=int, default=30, metavar="SECONDS")
    serve.set_defaults(run=_serve)

    purge = commands.add_parser("purge", help="remove expired sessions and other expired data of integrations")
    purge.add_argument("app", help="the App, such as main:app")
    purge.set_defaults(run=_purge)

    options = parser.parse_args(arguments)
    options.run(options)


def _key(options: argparse.Namespace) -> None:
    file: Path | None = options.env
    secret = secrets.token_urlsafe(32)
    if file is None:
        print(secret)
        return
    try:
        before = file.read_bytes() if file.exists() else b""
        if _has_key(before):
            sys.exit(f"gaman: {file} already has a GAMAN_KEY; sessions sealed with it would be lost, so remove it yourself first")
        newline = "" if not before or before.endswith(b"\n") else "\n"
        # Only its owner can read a new file; an existing file keeps its mode.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as opened:
            opened.write(f"{newline}GAMAN_KEY={secret}\n".encode())
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as error:
        sys.exit(f"gaman: can't write {file}: {error.strerror}")
    print(f"gaman: GAMAN_KEY is in {file}; keep it out of version control")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"gaman: other users of this machine may read it; run `chmod 600 {shlex.quote(str(file))}`", file=sys.stderr)


def _serve(options: argparse.Namespace) -> None:
    app = find_app(options.app)
    try:
        if options.trusted_proxies is not None:
            _only_app(app, options.app, "--trusted-proxies").trust(options.trusted_proxies)
        if options.allowed_hosts is not None:
            _only_app(app, options.app, "--allowed-hosts").allow(options.allowed_hosts)
    except ConfigError as error:
        sys.exit(f"gaman: {error}")
    run(
        app,
        host=options.host,
        port=options.port,
        workers=options.workers,
        reload=options.reload,
        timeout_request=options.timeout_request,
        max_connections=options.max_connections,
        timeout_graceful_shutdown=options.timeout_graceful_shutdown,
    )


def _purge(options: argparse.Namespace) -> None:
    app = _only_app(find_app(options.app), options.app, "gaman purge")

    async def purge() -> dict[str, int]:
        await app.load()
        try:
            return await app.purge()
        finally:
            await app.shutdown()

    try:
        removed = asyncio.run(purge())
    except GamanError as error:
        sys.exit(f"gaman: {explain(error)}")
    for name, count in removed.items():
        print(f"gaman: {name}: {count} removed")
    if not removed:
        print(f"gaman: nothing in {options.app} is stored on this server")


def find_app(target: str) -> App | Application:
    """Return the application that *target* names, such as `main:app`, from the working directory; else exit with the reason."""
    module_name, _, attribute = target.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        sys.exit(f"gaman: {target!r} doesn't name an application; write it as module:app")
    sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ConfigError as error:
        sys.exit(f"gaman: {explain(error)}{location_of(error)}")
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            sys.exit(f"gaman: there is no module {module_name!r} in {os.getcwd()} or among the installed ones")
        traceback.print_exception(*exc_info_of(error))
        sys.exit(1)
    app = getattr(module, attribute, None)
    if app is None:
        sys.exit(f"gaman: {target} is missing; write {attribute} = gaman.App(...) in {module_name}")
    try:
        return check_application(target, app)
    except ConfigError as error:
        sys.exit(f"gaman: {error}")


def _only_app(app: App | Application, target: str, purpose: str) -> App:
    """Return *app* if it is an App; else exit and say that *purpose* needs one."""
    if not isinstance(app, App):
        sys.exit(f"gaman: {purpose} needs a gaman.App, and {target} is the application {kind_of(app)}")
    return app


if __name__ == "__main__":
    main()
