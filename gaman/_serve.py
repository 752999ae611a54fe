"""serve(): serves routes or an App with gaman's own server, which is loaded when serve() is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from gaman._app import App
from gaman._integration import Integration
from gaman._matching import Routes
from gaman._proxies import NEARBY
from gaman._routing import Table
from gaman.errors import ConfigError


def serve(
    routes: App | Routes | Table,
    *,
    integrations: Iterable[Integration] = (),
    deps: Any = None,
    debug: bool = False,
    max_body_size: int = 1 << 20,
    trusted_proxies: str | Iterable[str] = NEARBY,
    allowed_hosts: str | Iterable[str] = "*",
    host: str = "127.0.0.1",
    port: int = 3431,
    workers: int = 1,
    reload: bool = False,
    timeout_request: float = 30,
    max_connections: int | None = None,
    timeout_graceful_shutdown: int = 30,
) -> None:
    """Serve *routes*, or an App, until SIGINT or SIGTERM.

        gaman.serve({"/": index}, port=8000, workers=4)

    The options before *host* are App's, and raise ConfigError if *routes* is an App. Port 0 takes a free port. A client that sends
    nothing within a request for *timeout_request* seconds gets 408, and one that reads nothing of a response for as long is
    disconnected. Each process answers 503 to connections beyond *max_connections*. On a stop, requests in flight have
    *timeout_graceful_shutdown* seconds.

    If the server can't start, the process exits with status 1 and prints the reason on stderr. In a running event loop,
    ConfigError is raised.

    With *workers* or *reload*, each worker process runs the script again as far as this call, which never returns there. A worker
    that dies or hangs is replaced. SIGHUP replaces the workers one by one; SIGTTIN starts one more, and SIGTTOU stops one.
    """
    app = _app_of(
        routes,
        integrations=integrations,
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
        workers=workers,
        reload=reload,
        timeout_request=timeout_request,
        max_connections=max_connections,
        timeout_graceful_shutdown=timeout_graceful_shutdown,
    )


def _app_of(routes: App | Routes | Table, **options: Any) -> App:
    if not isinstance(routes, App):
        return App(routes, **options)
    defaults = cast("dict[str, Any]", serve.__kwdefaults__)
    # By identity, because deps may be any object, with any `==`.
    if given := [name for name, value in options.items() if value is not defaults[name]]:
        raise ConfigError(f"gaman.serve() got an App, so pass {given[0]}= where the App is created: gaman.App(..., {given[0]}=...)")
    return routes
