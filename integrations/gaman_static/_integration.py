"""static(): the files of a folder as responses, for requests that no route has answered."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from anyio import to_thread

from gaman import ConfigError, Context, HTTPError, Integration, Response
from gaman.errors import checks_arguments
from gaman_static._encodings import IDENTITY, choose
from gaman_static._folder import Folder, content_type, may_be_page

HASHED = (
    # Eight hexadecimal digits or more, with a letter and a figure, which a date lacks: app.3f9a1c2b.js. Not the end of a UUID.
    r"(?:[.-](?<!-[0-9a-f]{4}-)(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,64}"
    # Eight letters and figures: index-BwX9zQ1k.js. Not words and numbers, as in demo-Html5App.js.
    r"|-(?!(?:[A-Z]?[a-z]{2,}|[A-Z]{2,}|[0-9]+|[_-])+\.)(?=[\w-]*[a-z]|[0-9A-Z]{8}\.)(?=[\w-]*[A-Z])(?=[\w-]*[0-9][\w-]*[A-Za-z])[\w-]{8})"
    r"(?:\.chunk|\.min)?\.(?:avif|css|gif|ico|jpe?g|js|mjs|mp4|otf|png|svg|ttf|wasm|webm|webp|woff2?)(?:\.map)?\Z"
)
"""The names of files that never change, as bundlers write them: `app.3f9a1c2b.js`, `index-BwX9zQ1k.js`. UUIDs aren't among them."""

_IMMUTABLE = "public, max-age=31536000, immutable"
_ALLOW = {"allow": "GET, HEAD, OPTIONS"}
_is_path = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[^/:*?#%{}<>\\\x00-\x20]+)*/?").fullmatch
_accepts_html = re.compile(r"\s*text/html\s*(?!.*;\s*q=0(?:\.0*)?\s*(?:;|\Z))(?:;.*)?", re.IGNORECASE | re.DOTALL).fullmatch


@checks_arguments
def static(
    path: str,
    folder: str | os.PathLike[str],
    *,
    fallback: str | None = None,
    hashed: str | None = HASHED,
    cache_control: str = "no-cache",
) -> Integration:
    """Return an integration that serves the files in *folder* below *path*, where no route matches.

        app = App(routes, integrations=[static("/assets", "public")])

    - *folder* may be relative to the working directory, and is resolved when the application starts.
    - *fallback*, such as `"index.html"`, is the file for pages that don't exist, for applications that route in the browser.
    - *hashed* is a regular expression. A file with a match in its path below *folder* may be cached for a year. None means no file.
    - *cache_control* is the Cache-Control of the other files.

    ConfigError is raised for an invalid option, and at the start for a folder or a fallback that doesn't exist.
    """
    _check(path, folder, cache_control)
    prefix = path.rstrip("/")
    files = Folder(folder, at_root=not prefix)
    try:
        is_hashed = re.compile(r"(?!)" if hashed is None else hashed).search
    except (re.error, TypeError) as cause:
        raise ConfigError(f"static(hashed={hashed!r}) isn't a regular expression: {cause}; give one, or None") from None

    async def send(ctx: Context, path: str, *vary: str) -> Response | None:
        """Return the response of the file at *path*, or None if there is none."""
        found = await to_thread.run_sync(files.find, path)
        if found is None:
            return None
        if ctx.method == "OPTIONS":
            return Response(None, 204, _ALLOW)
        if ctx.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers=_ALLOW)
        if not found:
            # Relative, because a proxy may have removed the beginning of the path.
            query = quote(ctx.scope["query_string"], safe="!$&'()*+,;=:@/?%")
            return Response.redirect(f"./{quote(ctx.path.rpartition('/')[2], safe='')}/{query and '?'}{query}")
        name = found[IDENTITY]
        headers = {"content-type": content_type(name), "cache-control": _IMMUTABLE if is_hashed(name) else cache_control}
        if (coding := choose(found, ctx.headers.getall("accept-encoding"))) != IDENTITY:
            headers["content-encoding"] = coding
        if vary := (*vary, "Accept-Encoding") if len(found) > 1 else vary:
            headers["vary"] = ", ".join(vary)
        # Folder has refused hidden names already, except .well-known.
        return Response.file(found[coding], headers=headers, root=files.root, hidden=True)

    async def on_unmatched(ctx: Context) -> Response | None:
        path = ctx.path.removeprefix(prefix)
        if not ctx.path.startswith(prefix) or path[:1] not in ("", "/"):
            return None
        response = await send(ctx, path)
        if response is None and fallback is not None and _is_navigation(ctx) and not files.is_hidden(path):
            response = await send(ctx, f"/{fallback}", "Accept")
        return response

    # A fallback answers where no other folder has the file.
    return Integration(
        name=f"static {prefix or '/'} from {os.fspath(folder)}",
        priority="normal" if fallback is None else "low",
        on_load=lambda app: to_thread.run_sync(files.open, fallback),
        on_unmatched=on_unmatched,
    )


def _is_navigation(ctx: Context) -> bool:
    """Return whether the browser opens a page: it accepts HTML by name, and the path doesn't end like another kind of file."""
    is_read = ctx.method in ("GET", "HEAD")
    return is_read and may_be_page(ctx.path) and any(map(_accepts_html, ",".join(ctx.headers.getall("accept")).split(",")))


def _check(path: object, folder: object, cache_control: object) -> None:
    if not isinstance(path, str) or not path.startswith("/") or _is_path(path) is None:
        raise ConfigError(f"static({path!r}, ...): the path is '/' or literal segments such as '/assets', without a parameter or *")
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ConfigError(f"static({path!r}, {folder!r}): the folder is a str or a Path, such as 'public'")
    if not isinstance(cache_control, str) or not cache_control.isascii() or not cache_control.isprintable():
        raise ConfigError(f"static(cache_control={cache_control!r}) isn't the value of a header; write one such as 'no-cache'")
