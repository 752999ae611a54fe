"""serve(): serves routes, an App or another ASGI application with gaman's own server, which is loaded when serve() is called."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from functools import partial
from inspect import isclass, ismodule, isroutine, signature
from os import PathLike
from typing import Any, cast

# Loaded with gaman, before the application changes the environment.
from gaman import _environment  # noqa: F401 # pyright: ignore[reportUnusedImport]
from gaman._app import App
from gaman._application import check_application, kind_of, takes
from gaman._asgi import Application
from gaman._integration import Integration
from gaman._matching import Routes
from gaman._middleware import Wrapper
from gaman._proxies import NEARBY
from gaman._routing import Table
from gaman._tracebacks import place_of_caller
from gaman.errors import ConfigError, checks_arguments


@checks_arguments
def serve(
    routes: App | Routes | Table | Application,
    *,
    integrations: Iterable[Integration] = (),
    middleware: Iterable[Wrapper] = (),
    deps: Any = None,
    debug: bool = False,
    max_body_size: int = 1 << 20,
    trusted_proxies: str | Iterable[str] = NEARBY,
    allowed_hosts: str | Iterable[str] = "*",
    host: str = "127.0.0.1",
    port: int = 3431,
    uds: str | PathLike[str] | None = None,
    ssl_certfile: str | PathLike[str] | None = None,
    ssl_keyfile: str | PathLike[str] | None = None,
    workers: int = 1,
    reload: bool = False,
    timeout_request: float = 30,
    max_connections: int | None = None,
    timeout_graceful_shutdown: int = 30,
    access_log: bool = False,
    log_level: str | None = None,
) -> None:
    """Serve *routes*, an App or another ASGI application, until SIGINT or SIGTERM.

        gaman.serve({"/": index}, port=8000, workers=4)

    The options before *host* are App's, and raise ConfigError if *routes* is an application. Port 0 takes a free port. *uds* is the
    path of a Unix socket, which takes the place of *host* and *port*. With *ssl_certfile* and *ssl_keyfile*, PEM files, the server
    speaks TLS.

    *access_log* logs each request at INFO to the logger `gaman`, and *log_level* sets that logger's level: `debug`, `info`,
    `warning`, `error` or `critical`. *access_log* and App's *debug* lower it to `info`. None leaves the level unchanged.

    A client that sends nothing within a request for *timeout_request* seconds gets 408, and one that reads nothing of a response
    for as long is disconnected. Each process answers 503 to connections beyond *max_connections*. On a stop, requests in flight
    have *timeout_graceful_shutdown* seconds.

    If the server can't start, the process exits with status 1 and prints the reason on stderr. In a running event loop,
    ConfigError is raised.

    With *workers* or *reload*, each worker process runs the script again as far as this call, which never returns there. A worker
    that dies or hangs is replaced. SIGHUP replaces the workers one by one; SIGTTIN starts one more, and SIGTTOU stops one.
    """
    app = _application_of(
        routes,
        integrations=integrations,
        middleware=middleware,
        deps=deps,
        debug=debug,
        max_body_size=max_body_size,
        trusted_proxies=trusted_proxies,
        allowed_hosts=allowed_hosts,
    )
    from gaman._server import run  # noqa: PLC0415 - with uvicorn it takes as long to load as the rest of gaman

    run(
        app,
        host=host,
        port=port,
        uds=uds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        workers=workers,
        reload=reload,
        timeout_request=timeout_request,
        max_connections=max_connections,
        timeout_graceful_shutdown=timeout_graceful_shutdown,
        access_log=access_log,
        log_level=log_level,
        place=place_of_caller(),
    )


def _application_of(routes: App | Routes | Table | Application, **options: Any) -> Application:
    """Return the application to serve: *routes*, or an App of them with these *options*."""
    if not _is_application(routes):
        return App(cast("Routes | Table", routes), **options)
    if not isinstance(routes, App):
        check_application("gaman.serve()", routes)
    defaults = signature(serve).parameters
    # By identity, because deps may be any object, with any `==`.
    given = [name for name, value in options.items() if value is not defaults[name].default]
    if given and isinstance(routes, App):
        raise ConfigError(f"gaman.serve() got an App, so pass {given[0]}= where the App is created: gaman.App(..., {given[0]}=...)")
    if given:
        raise ConfigError(
            f"gaman.serve() got the application {kind_of(routes)}, and {given[0]}= is an option of App; "
            f"mount the application in one: gaman.serve({{'*': gaman.mount(app)}}, {given[0]}=...)"
        )
    return cast("Application", routes)


def _is_application(value: object) -> bool:
    """Return whether *value* is, or seems to be meant as, an application and not as routes."""
    if isinstance(value, Routes) or (isclass(value) and issubclass(value, App)):
        return False
    if isroutine(value) or isinstance(value, partial):
        # A function may return the table; App explains what is wrong with another one.
        return takes(cast("object", value), 3)
    return callable(value) or ismodule(value) or isinstance(value, Coroutine)
