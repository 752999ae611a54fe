"""Policy: a Content-Security-Policy (CSP 3), checked for what browsers would silently ignore."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias, cast

from gaman import ConfigError
from gaman.errors import nearest

Sources: TypeAlias = str | Iterable[str] | bool | None

NONCE = "'nonce'"
"""The place of the nonce in a list of sources. It is left out of responses that don't use the nonce."""

STRICT: Mapping[str, Sources] = MappingProxyType(
    {
        "default_src": ("'self'",),
        "script_src": ("'self'", NONCE),
        "style_src": ("'self'", NONCE),
        "object_src": ("'none'",),
        "base_uri": ("'none'",),
        "form_action": ("'self'",),
        "frame_ancestors": ("'none'",),
    }
)
"""The default policy: everything comes from the page's own origin, inline code needs the nonce, and no site may frame the page."""

_WITH_SOURCES = {
    *("base-uri", "child-src", "connect-src", "default-src", "fenced-frame-src", "font-src", "form-action", "frame-ancestors"),
    *("frame-src", "img-src", "manifest-src", "media-src", "object-src", "script-src", "script-src-attr", "script-src-elem"),
    *("style-src", "style-src-attr", "style-src-elem", "worker-src"),
}
_FLAGS = {"sandbox", "upgrade-insecure-requests"}
_KNOWN = sorted(_WITH_SOURCES | _FLAGS | {"report-to", "report-uri", "require-trusted-types-for", "trusted-types"})
_KEYWORDS = {
    *("none", "self", "nonce", "report-sample", "strict-dynamic", "inline-speculation-rules"),
    *("unsafe-eval", "unsafe-hashes", "unsafe-inline", "wasm-unsafe-eval"),
}
_SCHEMES = {"blob", "data", "filesystem", "http", "https", "mediastream", "ws", "wss"}
_is_hash = re.compile(r"sha(?:256|384|512)-[A-Za-z0-9+/_-]+={0,2}").fullmatch
_is_word = re.compile(r"[!-+\--:<-~]+").fullmatch


class Policy:
    """The policy *given* as an *option* of headers(). ConfigError names what browsers would ignore in it."""

    def __init__(self, option: str, given: Mapping[str, Sources] | str) -> None:
        self._text = "; ".join(" ".join([name, *words]) for name, words in _parse(option, given).items())
        self.takes_nonce = NONCE in self._text
        # A directive without sources allows nothing, like 'none'.
        self.without_nonce = self._text.replace(f" {NONCE}", "").encode()

    def with_nonce(self, nonce: str) -> bytes:
        """Return the policy with *nonce* in the place of NONCE."""
        return self._text.replace(NONCE, f"'nonce-{nonce}'").encode()


def _parse(option: str, given: object) -> dict[str, list[str]]:
    """Return the words of each directive, by its name in CSP."""
    directives: dict[str, list[str]] = {}
    pairs: Iterable[tuple[str, object]]
    if isinstance(given, str):
        pairs = [(words[0], words[1:]) for part in given.split(";") if (words := part.split())]
    elif isinstance(given, Mapping):
        pairs = cast("Mapping[str, object]", given).items()
        directives = {} if given is STRICT else _parse(option, STRICT)
    else:
        raise ConfigError(f"headers({option}={given!r}) isn't a policy; give a dict of directives, a str, or None to leave it out")
    seen = set[str]()
    for key, sources in pairs:
        name = str(key).lower().replace("_", "-")
        if name not in _KNOWN:
            raise ConfigError(f"headers({option}=...): {key!r} isn't a directive{nearest(name, _KNOWN) or '; remove it'}")
        if name in seen:
            raise ConfigError(f"headers({option}=...) has {name} twice, and browsers ignore the second; write it once")
        seen.add(name)
        if sources is None or sources is False:
            directives.pop(name, None)
        else:
            directives[name] = _read(f"headers({option}=...): {name}", name, sources)
    if not directives:
        raise ConfigError(f"headers({option}={given!r}) has no directive; write {option}=None to leave the field out")
    return directives


def _read(where: str, name: str, sources: object) -> list[str]:
    """Return the words of a directive; ConfigError for what browsers would ignore or misread."""
    if name in _FLAGS and (sources is True or not sources):
        return []
    given = cast("Iterable[object]", sources) if isinstance(sources, Iterable) and not isinstance(sources, str) else [sources]
    words: list[str] = []
    for text in given:
        if not isinstance(text, str):
            raise ConfigError(f"{where} is {text!r}, which isn't a source; give a list of str, or None to leave it out")
        # Spaces separate sources, so a text may hold several, as in the field itself.
        words += text.split()
    for word in words:
        if fault := _fault(name, word):
            raise ConfigError(f"{where} has {word!r}: {fault}")
    if not words:
        raise ConfigError(f"{where} is empty; write [\"'none'\"] to allow nothing, or None to leave it out")
    if len(words) > 1 and "'none'" in words:
        raise ConfigError(f"{where} has 'none' beside other sources, and browsers ignore it; remove it, or the others")
    if NONCE in words and "'unsafe-inline'" in words:
        raise ConfigError(f"{where} has 'unsafe-inline' beside NONCE, and browsers ignore it; remove one of them")
    return words


def _fault(name: str, word: str) -> str | None:
    """Return why a word of the directive *name* doesn't mean what it seems to, and the fix; None for a valid one."""
    if _is_word(word) is None:
        return "a comma, a semicolon or a character beyond ASCII can't be in it; percent-encode that"
    bare = word.strip("'\"")
    lower = bare.lower()
    if name not in _WITH_SOURCES or (word == f"'{bare}'" and (bare in _KEYWORDS or _is_hash(bare))):
        return None
    if lower.startswith("nonce-"):
        return "a fixed nonce protects nothing; write NONCE, which differs for each response"
    if word == f"'{bare}'":
        return f"it isn't a keyword{nearest(bare, _KEYWORDS) or '; remove its quotes'}"
    if lower in _KEYWORDS or _is_hash(bare):
        return f"browsers take it for a host; write \"'{bare}'\", with quotes"
    if lower in _SCHEMES:
        return f"browsers take it for a host; write '{bare}:', with a colon"
    return None if bare == word else "remove its quotes"
