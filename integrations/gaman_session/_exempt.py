"""ExemptPaths: the paths of SessionMiddleware(allow_cross_site=...), which take requests from pages of every site."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from gaman import ConfigError

_has_pattern = re.compile(r"[*{}<>?#]|/:").search


class ExemptPaths:
    """Paths such as `/webhook`, and `/api/*` for `/api` and every path below it. ConfigError names an entry that isn't one."""

    def __init__(self, paths: object) -> None:
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            raise ConfigError(
                f"SessionMiddleware(allow_cross_site={paths!r}): it takes a list of paths; write allow_cross_site=['/webhook']"
            )
        self._exact = frozenset(map(_check, cast("Iterable[object]", paths)))
        self._prefixes = tuple(path.removesuffix("*") for path in self._exact if path.endswith("/*"))

    def cover(self, scope: Any) -> bool:
        """Return whether the request or WebSocket of this ASGI *scope* has one of the paths, without its root_path."""
        if not self._exact:
            return False
        path: str = scope["path"]
        root: str = scope.get("root_path", "").rstrip("/")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        if path in self._exact or f"{path}/" in self._prefixes:
            return True
        # The application may resolve `/api/../transfer`, and a `//` as well.
        return path.startswith(self._prefixes) and not {"", ".", ".."} & {*path.rstrip("/").split("/")[1:]}


def _check(path: object) -> str:
    if isinstance(path, str) and path.startswith("/") and _has_pattern(path.removesuffix("/*")) is None:
        return path
    raise ConfigError(
        f"SessionMiddleware(allow_cross_site=...): {path!r} isn't a path such as '/webhook', or '/api/*' for every path below it; "
        "it has no parameters and no query"
    )
