"""The public names of gaman_session.testing, the conformance suite for drivers."""

from gaman_session.testing import *
