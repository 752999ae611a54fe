"""Security header fields for gaman: headers() returns the integration, which adds them to responses."""

from gaman_headers._integration import headers
from gaman_headers._policy import NONCE, STRICT

__all__ = ["NONCE", "STRICT", "headers"]
