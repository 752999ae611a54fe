"""The public names of gaman_headers, the package that adds security header fields."""

from gaman_headers import *
