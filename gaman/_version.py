"""The version of gaman, from which the build takes the package's."""

__version__ = "0.1.0"
