"""CORS for gaman: cors() returns the integration, which lets scripts of other origins read responses."""

from gaman_cors._integration import cors

__all__ = ["cors"]
