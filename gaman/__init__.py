"""gaman: a minimal async web framework with encrypted sessions."""

from gaman._app import App
from gaman._context import Context, log_extra
from gaman._cookies import Cookies, SameSite, find_cookie, find_cookies
from gaman._fields import Fields
from gaman._forms import Form, UploadedFile
from gaman._headers import Headers, MutableHeaders
from gaman._integration import Integration, Priority, define_integration
from gaman._layers import Handler
from gaman._matching import Routes
from gaman._middleware import Middleware
from gaman._mount import mount
from gaman._response import Response
from gaman._results import Result
from gaman._routing import Table, define_routes
from gaman._serve import serve
from gaman._types import defaults_setter
from gaman._version import __version__ as __version__
from gaman._worker_count import count_workers
from gaman.errors import (
    ClientDisconnected,
    ConfigError,
    GamanError,
    HeaderError,
    HTTPError,
    InvalidInput,
    MissingDependency,
    ResultError,
)

__all__ = [
    "App",
    "ClientDisconnected",
    "ConfigError",
    "Context",
    "Cookies",
    "Fields",
    "Form",
    "GamanError",
    "HTTPError",
    "Handler",
    "HeaderError",
    "Headers",
    "Integration",
    "InvalidInput",
    "Middleware",
    "MissingDependency",
    "MutableHeaders",
    "Priority",
    "Response",
    "Result",
    "ResultError",
    "Routes",
    "SameSite",
    "Table",
    "UploadedFile",
    "count_workers",
    "defaults_setter",
    "define_integration",
    "define_routes",
    "find_cookie",
    "find_cookies",
    "log_extra",
    "mount",
    "serve",
]
