"""The `gaman` command: create a project, a key, serve an application, list its routes, end sessions, remove expired data."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import parent_process
from pathlib import Path

from gaman import _command_sessions, _environment
from gaman._app import App
from gaman._application import check_application, kind_of
from gaman._asgi import Application
from gaman._command_new import create_project
from gaman._command_routes import describe
from gaman._command_settings import add_key, load_settings, warn_of_readers
from gaman._integration import Integration
from gaman._server import run
from gaman._server._console import LEVELS
from gaman._tracebacks import exit_with, explain, location_of
from gaman._version import __version__
from gaman.errors import ConfigError

_FOR_APP = ("debug", "trusted_proxies", "allowed_hosts")
"""The options of `gaman serve` that change the App; the others are arguments of run()."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. SystemExit has its status, and the message if it failed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help(sys.stderr)
        sys.exit(2)
    if (file := getattr(options, "env_file", None)) is not None:
        load_settings(file)
        # A worker inherits what was read from the file, because a pipe can be read only once.
        _environment.remember()
    options.run(options)


def make_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(prog="gaman", description="A minimal async web framework with encrypted sessions.")
    version = f"gaman {__version__} ({platform.python_implementation()} {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="command")

    def add(name: str, run: Callable[[Namespace], None], about: str, *, takes_app: bool = True) -> ArgumentParser:
        # An option that isn't given keeps the default of run().
        command = commands.add_parser(name, help=about, description=about, argument_default=SUPPRESS)
        command.set_defaults(run=run)
        if takes_app:
            add_app(command)
        return command

    def add_app(command: ArgumentParser) -> None:
        command.add_argument("app", metavar="main:app", help="the module, and the name of the App in it")
        command.add_argument(
            "--env-file", type=Path, metavar="FILE", help="read settings such as GAMAN_KEY; the environment has precedence"
        )

    new = add("new", _new, "write a small project to start from: a login, a test, settings", takes_app=False)
    new.add_argument("folder", metavar="NAME", type=Path, help="the new folder, or . for the working directory")

    serve = add("serve", _serve, "serve an application")
    serve.add_argument("--host", help="the address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="its port; 0 takes a free one (default: 3431)")
    serve.add_argument("--uds", metavar="PATH", help="listen on a Unix socket instead")
    serve.add_argument("--ssl-certfile", metavar="FILE", help="serve HTTPS with this certificate and those that it depends on")
    serve.add_argument("--ssl-keyfile", metavar="FILE", help="the certificate's private key, if it is in another file")
    serve.add_argument("--workers", type=int, metavar="COUNT", help="number of processes (default: 1)")
    serve.add_argument("--reload", action="store_true", help="restart when a source file changes")
    serve.add_argument("--debug", action="store_true", help="show tracebacks to the client, and log each request")
    serve.add_argument("--access-log", action="store_true", help="log each request")
    serve.add_argument("--log-level", choices=LEVELS, help="show the log from this level on: %(choices)s", metavar="LEVEL")
    serve.add_argument("--trusted-proxies", metavar="LIST", help="addresses and networks, with commas")
    serve.add_argument("--allowed-hosts", metavar="LIST", help="the hosts that the App answers, with commas")
    serve.add_argument("--timeout-request", type=float, metavar="SECONDS", help="how long a client may be silent (default: 30)")
    serve.add_argument(
        "--max-connections", type=int, metavar="COUNT", help="limit of each process; further connections get 503 (default: none)"
    )
    serve.add_argument(
        "--timeout-graceful-shutdown", type=int, metavar="SECONDS", help="how long requests may take at a stop (default: 30)"
    )

    add("routes", _routes, "list the routes of an App: methods, path, middleware, handler with its line")

    key = add("key", _key, "print a new secret for sessions, or add it to a file of settings", takes_app=False)
    key.add_argument("--env", type=Path, metavar="FILE", help="add GAMAN_KEY= to FILE instead of printing")

    sessions = add("sessions", _sessions, "count, list and end the sessions of an App, or of its session()", takes_app=False)
    sessions.add_argument("action", choices=_command_sessions.ACTIONS, help="one of %(choices)s", metavar="ACTION")
    add_app(sessions)
    about = "the owner, as login() got it; for `end`, the handle of a session"
    sessions.add_argument("name", nargs="?", help=about, metavar="OWNER")
    sessions.add_argument("--yes", action="store_true", help="end sessions without asking first")
    sessions.add_argument("--json", action="store_true", help="print the result as JSON")

    add("purge", _purge, "remove expired sessions and other expired data of integrations")
    return parser


def _new(options: Namespace) -> None:
    for line in create_project(options.folder):
        print(line)


def _key(options: Namespace) -> None:
    file: Path | None = getattr(options, "env", None)
    if file is None:
        print(secrets.token_urlsafe(32))
        return
    add_key(file)
    print(f"gaman: GAMAN_KEY is in {file}; keep it out of version control")
    warn_of_readers(file)


def _serve(options: Namespace) -> None:
    # With --reload, only workers import the application. If that fails, they wait for the next change.
    waits = "reload" in options and parent_process() is None
    app = App({}) if waits else find_app(options.app)
    given = vars(options)
    for_app = [name for name in _FOR_APP if name in given]
    if for_app:
        _configure(_only_app(app, options.app, f"--{for_app[0].replace('_', '-')}"), options)
    run(app, **{name: value for name, value in given.items() if name not in (*_FOR_APP, "run", "app", "env_file")})


def _configure(app: App, options: Namespace) -> None:
    """Change *app* as *options* say."""
    try:
        if "debug" in options:
            app.debug = True
        if "trusted_proxies" in options:
            app.trust(options.trusted_proxies)
        if "allowed_hosts" in options:
            app.allow(options.allowed_hosts)
    except ConfigError as error:
        sys.exit(f"gaman: {error}")


def _routes(options: Namespace) -> None:
    print("\n".join(describe(_only_app(find_app(options.app), options.app, "gaman routes"))))


def _sessions(options: Namespace) -> None:
    arguments = _command_sessions.Arguments(
        options.action, options.app, getattr(options, "name", None), "yes" in options, "json" in options
    )
    _command_sessions.run(arguments, _find_value(options.app)[0])


def _purge(options: Namespace) -> None:
    value, _ = _find_value(options.app)
    if isinstance(value, Integration):
        # The session() of an application in another framework.
        app = App({}, integrations=[value])
    else:
        app = _only_app(find_app(options.app), options.app, "gaman purge", "a gaman.App, or a session() object")

    async def purge() -> dict[str, int]:
        await app.load()
        try:
            return await app.purge()
        finally:
            await app.shutdown()

    try:
        removed = asyncio.run(purge())
    except Exception as error:
        exit_with(error)
    for name, count in removed.items():
        print(f"gaman: {name}: {count} removed")
    if not removed:
        print(f"gaman: nothing in {options.app} is stored on this server")


def find_app(target: str) -> App | Application:
    """Return the application that *target* names, such as `main:app`, from the working directory; else exit with the reason."""
    value, meant = _find_value(target)
    try:
        return check_application(target, value)
    except ConfigError as error:
        sys.exit(f"gaman: {error}{meant}")


def _find_value(target: str) -> tuple[object, str]:
    """Return what *target* names, and a question for messages if another name was meant; else exit with the reason."""
    module_name, _, attribute = target.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        sys.exit(f"gaman: {target!r} doesn't name an application; write it as module:app")
    if module_name.endswith(".py"):
        sys.exit(f"gaman: {target!r} has the name of a file; write {module_name[:-3].replace('/', '.')}:{attribute}")
    if attribute.endswith("()"):
        sys.exit(
            f"gaman: {target!r} is a call; write application = {attribute} in {module_name}, and name {module_name}:application"
        )
    sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ConfigError as error:
        sys.exit(f"gaman: {explain(error)}{location_of(error)}")
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            sys.exit(f"gaman: there is no module {module_name!r} in {os.getcwd()} or among the installed ones")
        exit_with(error)
    app = getattr(module, attribute, None)
    if app is None and getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        # A folder without __init__.py.
        [folder, *_] = module.__path__
        sys.exit(
            f"gaman: {module_name!r} is a folder; `cd {os.path.relpath(folder)}`, and name a module in it, such as main:{attribute}"
        )
    others = [name for name, value in vars(module).items() if isinstance(value, App)]
    meant = f"; did you mean {module_name}:{others[0]}?" if others else ""
    if app is None:
        what = "is None" if hasattr(module, attribute) else "is missing"
        sys.exit(f"gaman: {target} {what}{meant or f'; write {attribute} = gaman.App(...) in {module_name}'}")
    return app, meant


def _only_app(app: App | Application, target: str, purpose: str, what: str = "a gaman.App") -> App:
    """Return *app* if it is an App; else exit and say *what* is needed for *purpose*."""
    if not isinstance(app, App):
        sys.exit(f"gaman: {purpose} needs {what}, and {target} is the application {kind_of(app)}")
    return app


if __name__ == "__main__":
    main()
