"""The public names of gaman_session, the package that holds the session."""

from gaman_session import *
