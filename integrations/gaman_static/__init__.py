"""Static files for gaman: static() returns the integration, which serves a folder where no route matches."""

from gaman_static._integration import HASHED, static

__all__ = ["HASHED", "static"]
