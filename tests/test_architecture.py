"""The rules of the architecture: the order of imports, the public names, and the first sentence of each file."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (ROOT, ROOT / "integrations")

# A module imports only from lower rows.
ORDER = [
    ["gaman.headers"],
    ["gaman_headers"],
    ["gaman_headers._integration"],
    ["gaman_headers._caches", "gaman_headers._nonce", "gaman_headers._policy"],
    ["gaman.cors", "gaman.static"],
    ["gaman_cors", "gaman_static"],
    ["gaman_cors._integration", "gaman_static._integration"],
    ["gaman_cors._origins", "gaman_static._folder"],
    ["gaman_static._encodings"],
    ["gaman.session.testing", "gaman.session.asgi"],
    ["gaman.session"],
    ["gaman_session.testing"],
    ["gaman_session._later"],
    ["gaman_session.asgi"],
    ["gaman_session._connection"],
    ["gaman_session"],
    ["gaman_session._integration", "gaman_session._exempt"],
    ["gaman_session._guard"],
    ["gaman_session._closing", "gaman_session._session_dict", "gaman_session._upkeep"],
    ["gaman_session._scope_session"],
    ["gaman_session._options"],
    ["gaman_session._option_hints"],
    ["gaman_session.drivers"],
    [
        "gaman_session.drivers.memory",
        "gaman_session.drivers.file",
        "gaman_session.drivers.redis",
        "gaman_session.drivers.sql",
        "gaman_session.drivers.mongodb",
    ],
    ["gaman_session.drivers._folder", "gaman_session.drivers._key_value"],
    ["gaman_session.drivers._due", "gaman_session.drivers._owner_folders"],
    ["gaman_session.drivers._disk", "gaman_session.drivers._encoding"],
    ["gaman_session.drivers._redis_keyspace", "gaman_session.drivers._redis_start"],
    ["gaman_session.drivers._sqlite_sessions"],
    ["gaman_session.drivers._sqlite"],
    ["gaman_session.drivers._mongodb_batches", "gaman_session.drivers._mongodb_owners"],
    ["gaman_session.drivers._mongodb_errors", "gaman_session.drivers._mongodb_ending"],
    ["gaman_session.drivers._mongodb_documents", "gaman_session.drivers._mongodb_client"],
    ["gaman_session.drivers._mongodb_waits"],
    ["gaman_session.drivers._redis_calls"],
    ["gaman_session.drivers._redis_cluster"],
    ["gaman_session.drivers._redis_servers"],
    ["gaman_session.drivers._redis_client", "gaman_session.drivers._redis_replicas"],
    ["gaman_session.drivers._redis_master"],
    [
        "gaman_session.drivers._redis_address",
        "gaman_session.drivers._redis_policy",
        "gaman_session.drivers._redis_records",
        "gaman_session.drivers._redis_scan",
        "gaman_session.drivers._redis_script",
    ],
    ["gaman_session.drivers._redis_failures"],
    ["gaman_session.drivers._transactions"],
    ["gaman_session.drivers._reports"],
    [
        "gaman_session.drivers._batches",
        "gaman_session.drivers._checks",
        "gaman_session.drivers._threads",
        "gaman_session.drivers._time_limit",
    ],
    ["gaman_session._stored"],
    ["gaman_session._flush"],
    ["gaman_session._known", "gaman_session._endable_cookie_session"],
    ["gaman_session._checked_cookie_session"],
    ["gaman_session._cookie_session"],
    ["gaman_session._session", "gaman_session._check_csrf", "gaman_session._require_fresh", "gaman_session._require_same_origin"],
    ["gaman_session._login"],
    ["gaman_session._session_base"],
    ["gaman_session._sessions", "gaman_session._awaitable", "gaman_session._misuse", "gaman_session._uncancelled"],
    ["gaman_session._pending"],
    ["gaman_session._ended"],
    ["gaman_session._login_list"],
    ["gaman_session._ended_store"],
    ["gaman_session._owners"],
    ["gaman_session._serializer", "gaman_session._sealing", "gaman_session._clock"],
    ["gaman_session._rules"],
    [
        "gaman_session._audit",
        "gaman_session._owned",
        "gaman_session._driver",
        "gaman_session._paths",
        "gaman_session._damage",
        "gaman_session._counters",
        "gaman_session._cross_site",
    ],
    ["gaman_session._errors", "gaman_session._gather"],
    ["gaman.testing"],
    ["gaman.testing._client"],
    ["gaman.testing._session"],
    ["gaman.testing._transport"],
    ["gaman.testing._lifespan", "gaman.testing._portal"],
    ["gaman.__main__"],
    ["gaman"],
    ["gaman._serve"],
    ["gaman._command_sessions"],
    ["gaman._command_new", "gaman._command_routes"],
    ["gaman._command_settings"],
    ["gaman._server"],
    ["gaman._server._supervisor", "gaman._server._uvicorn"],
    ["gaman._server._draining"],
    ["gaman._server._workers", "gaman._server._connections"],
    ["gaman._server._http"],
    ["gaman._server._exchange", "gaman._server._parser"],
    [
        "gaman._server._console",
        "gaman._server._listeners",
        "gaman._server._outbox",
        "gaman._server._reload",
        "gaman._server._tcp",
        "gaman._server._tls",
    ],
    ["gaman._app"],
    ["gaman._middleware"],
    ["gaman._lifecycle"],
    ["gaman._routing", "gaman._integration", "gaman._access", "gaman._failures", "gaman._lifespan"],
    ["gaman._mount"],
    ["gaman._application"],
    ["gaman._hints"],
    ["gaman._handlers"],
    ["gaman._dropped"],
    ["gaman._matching"],
    ["gaman._layers"],
    ["gaman._context"],
    ["gaman._body"],
    ["gaman._multipart", "gaman._json"],
    ["gaman._decoding"],
    ["gaman._forms", "gaman._texts"],
    ["gaman._faults", "gaman._types"],
    ["gaman._results"],
    ["gaman._response"],
    ["gaman._payloads"],
    ["gaman._file"],
    ["gaman._cookies", "gaman._proxies"],
    ["gaman._trailers"],
    ["gaman._framing"],
    ["gaman._headers", "gaman._hosts", "gaman._tracebacks"],
    [
        "gaman._accept",
        "gaman._asgi",
        "gaman._calls",
        "gaman._disconnects",
        "gaman._environment",
        "gaman._fields",
        "gaman._log",
        "gaman._params",
        "gaman._target",
        "gaman._version",
        "gaman._worker_count",
    ],
    ["gaman.errors"],
]
LEVELS = {name: level for level, row in enumerate(ORDER) for name in row}

# The parts of drivers whose names don't begin with the driver's.
PARTS = {"file": ["_folder", "_due", "_owner_folders", "_disk"], "sql": ["_sqlite", "_sqlite_sessions"]}

# Packages that only one file or one package imports.
OWNERS = {
    "uvicorn": "gaman._server",
    "dotenv": "gaman._command_settings",
    "python_multipart": "gaman._multipart",
    "httpx": "gaman.testing",
    "redis": "gaman_session.drivers.redis",
    "aiosqlite": "gaman_session.drivers._sqlite",
    "pymongo": "gaman_session.drivers.mongodb",
    "bson": "gaman_session.drivers.mongodb",
    "opentelemetry": "gaman_session._counters",
}
OPTIONAL = {"redis": ["redis"], "sql": ["aiosqlite"], "mongodb": ["pymongo"]}
# uvicorn uses it if it is installed; gaman doesn't import it.
FOR_UVICORN = {"uvloop"}
# Packages whose name isn't the one that they are imported by.
PACKAGES = {"dotenv": "python-dotenv"}
# Optional: gaman uses these packages if the user has installed them.
IF_INSTALLED = {"opentelemetry", "watchfiles"}


INTEGRATIONS = ("gaman_cors", "gaman_headers", "gaman_session", "gaman_static")


class Module(NamedTuple):
    """A source file and the name of its module."""

    name: str
    text: str


class Import(NamedTuple):
    """An import at run time: a module, and the name that is taken from it, if any."""

    module: str
    name: str | None


def find_modules() -> Iterator[Module]:
    for root in SOURCES:
        for path in sorted(root.glob("gaman*/**/*.py")):
            if path.parent.name == "_project":
                # A user's code, which `gaman new` copies.
                continue
            parts = path.relative_to(root).with_suffix("").parts
            yield Module(".".join(parts).removesuffix(".__init__"), path.read_text(encoding="utf-8"))


MODULES = list(find_modules())
NAMES = {module.name for module in MODULES}
each_module = pytest.mark.parametrize("module", MODULES, ids=[module.name for module in MODULES])


parse = functools.cache(ast.parse)


@functools.cache
def imports(text: str) -> list[Import]:
    """Return all imports of *text*, also those inside functions, except those for type checkers."""
    found: list[Import] = []
    waiting: list[ast.AST] = [parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(Import(inner, None) if inner in NAMES else Import(str(node.module), alias.name))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def own(text: str) -> list[Import]:
    return [each for each in imports(text) if each.module.split(".")[0] in ("gaman", *INTEGRATIONS)]


def third_party(text: str) -> set[str]:
    tops = {each.module.split(".")[0] for each in imports(text)}
    return tops - sys.stdlib_module_names - {"gaman", *INTEGRATIONS}


def exported(text: str) -> list[str]:
    """Return __all__ of a module; AssertionError names code that is neither its docstring, nor an import, nor __all__."""
    docstring, *body, last = parse(text).body
    assert isinstance(docstring, ast.Expr)
    names: list[str] = []
    for node in body:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        names += [alias.asname or alias.name for alias in node.names]
    assert isinstance(last, ast.Assign), ast.unparse(last)
    assert ast.unparse(last.targets[0]) == "__all__"
    exports: list[str] = ast.literal_eval(last.value)
    # A star import must not replace the importing module's own version.
    assert sorted(names) == sorted([*exports, *({"__version__"} & {*names})])
    return exports


def upward_imports(module: Module) -> list[str]:
    """Return the imports of *module* that don't lead downwards."""
    return [each.module for each in own(module.text) if LEVELS[each.module] <= LEVELS[module.name]]


@each_module
def test_every_module_has_its_place_in_the_order(module: Module) -> None:
    assert module.name in LEVELS


@each_module
def test_imports_run_downwards(module: Module) -> None:
    assert upward_imports(module) == []


def test_an_upward_import_is_found_wherever_it_is() -> None:
    for line in (
        "import gaman._app",
        "from gaman._app import App",
        "from gaman import _app",
        "def f():\n    import gaman",
        "import gaman._headers",
    ):
        assert upward_imports(Module("gaman._headers", line)), line
    for line in (
        "import gaman.errors",
        "from gaman import errors",
        "if TYPE_CHECKING:\n    from gaman._app import App",
        "import re",
    ):
        assert not upward_imports(Module("gaman._headers", line)), line


@each_module
def test_the_core_imports_no_integration(module: Module) -> None:
    doors = tuple(name.replace("_", ".") for name in INTEGRATIONS)
    if not module.name.startswith((*INTEGRATIONS, *doors)):
        assert [each.module for each in own(module.text) if each.module.startswith((*INTEGRATIONS, *doors))] == []


@each_module
def test_an_integration_imports_only_public_names_of_the_core(module: Module) -> None:
    if not module.name.startswith(INTEGRATIONS):
        return
    public = exported(next(each.text for each in MODULES if each.name == "gaman"))
    for each in own(module.text):
        if each.module.split(".")[0] == module.name.split(".")[0]:
            continue
        assert each.module in ("gaman", "gaman.errors", "gaman.testing"), each
        assert each.name is not None
        assert each.module != "gaman" or each.name in public, each


@each_module
def test_a_driver_imports_only_its_contract_and_what_drivers_share(module: Module) -> None:
    package, _, name = module.name.partition(".drivers.")
    if not name:
        return
    allowed = {
        "gaman",
        "gaman.errors",
        *(f"{package}.{room}" for room in ("_driver", "_errors", "_gather", "_paths", "_damage", "_rules")),
        *(
            f"{package}.drivers.{room}"
            for room in ("_batches", "_checks", "_encoding", "_reports", "_transactions", "_threads", "_time_limit")
        ),
    }
    # A driver may have parts in files of their own, which begin with its name or are listed.
    driver = next((driver for driver, parts in PARTS.items() if name in parts), name.removeprefix("_").partition("_")[0])
    allowed |= {f"{package}.drivers.{part}" for part in PARTS.get(driver, ())}
    allowed |= {each for each in NAMES if each.startswith(f"{package}.drivers._{driver}_")}
    assert {each.module for each in own(module.text)} <= allowed


@pytest.mark.parametrize("name", ["gaman", *INTEGRATIONS])
def test_the_public_names_are_imported_and_listed_without_logic(name: str) -> None:
    exports = exported(next(module.text for module in MODULES if module.name == name))
    assert not [each for each in exports if each.startswith("_")]


@pytest.mark.parametrize("name", ["cors", "headers", "session", "session.asgi", "session.testing", "static"])
def test_an_integration_is_re_exported_completely(name: str) -> None:
    [text] = [module.text for module in MODULES if module.name == f"gaman.{name}"]
    [_, line] = parse(text).body
    assert ast.unparse(line) == f"from gaman_{name} import *"


@each_module
def test_a_module_begins_with_one_sentence_about_itself(module: Module) -> None:
    tree = parse(module.text)
    assert tree.body[0].lineno == 1
    first, *rest = (ast.get_docstring(tree) or "").splitlines()
    assert re.fullmatch(r"\S.*[^.]\.", first), first
    assert not re.search(r"[.!?] +[A-Z]", first), f"more than one sentence: {first}"
    assert not rest or rest[0] == ""


def is_part(module: str, owner: str) -> bool:
    """Return whether *module* is *owner*, in its package, or a private file beside it whose name begins with its own."""
    package, _, name = owner.rpartition(".")
    return f"{module}.".startswith((f"{owner}.", f"{package}._{name}_"))


@each_module
def test_a_package_with_an_owner_is_imported_by_no_other_file(module: Module) -> None:
    owned = {name: OWNERS[name] for name in third_party(module.text) if name in OWNERS}
    assert {name: owner for name, owner in owned.items() if not is_part(module.name, owner)} == {}


def test_the_declared_dependencies_are_the_imported_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    def names(requirements: list[str]) -> list[str]:
        return [re.split(r"[^\w-]", requirement)[0] for requirement in requirements]

    imported = {PACKAGES.get(name, name.replace("_", "-")) for module in MODULES for name in third_party(module.text)}
    extras = {extra: names(packages) for extra, packages in project["project"]["optional-dependencies"].items()}
    # An App runs on Granian, and nothing imports it.
    assert extras == OPTIONAL | {"granian": ["granian"], "test": ["httpx", "pytest"], "all": ["gaman"]}
    for_tests = {"httpx"}
    # An included group is a table.
    assert for_tests <= {*names([each for each in project["dependency-groups"]["dev"] if isinstance(each, str)])}
    optional = {package for packages in OPTIONAL.values() for package in packages} | {"bson"}
    assert set(names(project["project"]["dependencies"])) == imported - optional - for_tests - IF_INSTALLED | FOR_UVICORN


def test_the_tables_for_contributors_have_each_file_and_its_first_sentence() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed: dict[str, str] = dict(re.findall(r"^\| \[`[\w/.]+`\]\(([\w/.]+)\) \| (.*) \|$", text, re.MULTILINE))
    files = [path for folder in ("gaman", "integrations", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    # A test file is named after what it tests.
    sentences = {
        path: str(ast.get_docstring(parse(path.read_text(encoding="utf-8")))) for path in files if path.name[:5] != "test_"
    }
    for script in (ROOT / "integrations").rglob("*.lua"):
        sentences[script] = script.read_text(encoding="utf-8").removeprefix("-- ")
    assert listed == {path.relative_to(ROOT).as_posix(): said.split("\n")[0] for path, said in sentences.items()}


def test_no_file_is_longer_than_400_lines() -> None:
    files = [
        path
        for folder in ("gaman", "integrations", "benchmarks")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".lua")
    ]
    long = {path.name: lines for path in files if (lines := path.read_text(encoding="utf-8").count("\n")) > 400}
    # The conformance suite reads better as one list.
    assert long.keys() <= {"testing.py"}
