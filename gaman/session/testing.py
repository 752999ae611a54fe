"""The public names of gaman_session.testing, for tests of applications and of drivers."""

from gaman_session.testing import *
