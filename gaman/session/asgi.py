"""The public names of gaman_session.asgi, the session as middleware."""

from gaman_session.asgi import *
