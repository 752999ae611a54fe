"""The public names of gaman_cors, the package that answers requests of other origins."""

from gaman_cors import *
