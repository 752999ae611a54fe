"""The public names of gaman_static, the package that serves folders."""

from gaman_static import *
