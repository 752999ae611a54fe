"""The documentation site has a page for each document and public name, every link leads to its target, and no host is asked."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import gaman
import gaman_session
from guide.site import build
from tests.test_examples import ROOT

NAMES = [f"{module}.{name}" for module, names in build.public_modules().items() for name in names]


def test_each_document_has_a_page() -> None:
    documents = {page.document for page in build.assemble().pages}
    [table] = re.findall(r"\n## The guide\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)
    chapters = re.findall(r"^\| \[.*?\]\((.*?)\)", table, re.MULTILINE)
    assert len(chapters) > 5
    assert documents > {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", *chapters}
    for pattern in ("examples/guide/*.md", "integrations/**/README.md"):
        assert documents > {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}


def test_each_public_name_is_in_the_reference_once() -> None:
    described = re.findall(r"^::: (\S+)$", "".join(page.text for page in build.assemble().pages), re.MULTILINE)
    assert len(described) == len(set(described))
    for module, names in (("gaman", gaman.__all__), ("gaman.session", gaman_session.__all__)):
        assert {f"{module}.{name}" for name in names} < set(NAMES)
    assert set(described) == {*NAMES, *build.public_modules()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the documents that a site begins with."""
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "integrations/gaman_session").mkdir(parents=True)
    (tmp_path / "examples/guide").mkdir(parents=True)
    (tmp_path / "main.py").touch()
    (tmp_path / "README.md").write_text("# gaman\n\n## Install\n\n## The guide\n")
    (tmp_path / "integrations/README.md").write_text("# How\n")
    (tmp_path / "integrations/gaman_session/README.md").write_text("# Session\n")
    return tmp_path


def pages() -> dict[str, str]:
    return {page.path: page.text for page in build.assemble().pages if page.document}


def test_a_document_is_cut_and_its_links_lead_to_the_pages(project: Path) -> None:
    (project / "README.md").write_text(
        "# gaman\n\n[Limits](#the-limits), [here](#install)\n\n## Install\n\n## Serving\n\n[`main`](main.py)\n\n### The limits\n\n"
        "[owners](integrations/gaman_session/README.md#owners), [up](#gaman), [same](#the-limits), [out](https://example.com/a)\n\n"
        "## The guide\n\n| chapter |\n|---|\n| [Scale](examples/guide/scale.md) |\n\n[size](examples/guide/scale.md#size)\n"
    )
    (project / "integrations/gaman_session/README.md").write_text("# Session\n\n## Owners\n\n[serve](../../README.md#serving)\n")
    (project / "examples/guide/scale.md").write_text(
        "# Scale\n\n## Size\n\n### Size\n\n[2](#size-1) [more](../../integrations/more.md)\n"
    )
    (project / "integrations/more.md").write_text("# More\n")
    assert pages() == {
        "index.md": "# gaman\n\n[Limits](serving.md#the-limits), [here](#install)\n\n## Install {#install}\n\n",
        "serving.md": "# Serving\n\n`main`\n\n## The limits {#the-limits}\n\n"
        "[owners](sessions/owners.md), [up](index.md), [same](#the-limits), [out](https://example.com/a)\n\n",
        "the-guide.md": "# The guide\n\n| chapter |\n|---|\n| [Scale](guide/scale.md) |\n\n[size](guide/scale.md#size)\n",
        "guide/scale.md": "# Scale\n\n## Size {#size}\n\n### Size {#size-1}\n\n[2](#size-1) "
        "[more](../project/integrations-more.md)\n",
        "sessions/index.md": "# Session\n\n",
        "sessions/owners.md": "# Owners\n\n[serve](../serving.md)\n",
        "integrations/index.md": "# How\n",
        "project/integrations-more.md": "# More\n",
    }


def test_code_that_looks_like_a_heading_or_a_link_stays(project: Path) -> None:
    code = "# How\n\n```sh\n## Not a heading\n[a](b)\n```\n\n`[a](b)`\n"
    (project / "integrations/README.md").write_text(code)
    assert pages()["integrations/index.md"] == code


def test_a_new_integration_is_placed_and_a_new_chapter_needs_its_row(project: Path) -> None:
    (project / "integrations/gaman_cors").mkdir()
    (project / "integrations/gaman_cors/README.md").write_text("# CORS\n")
    assert pages()["integrations/gaman_cors.md"] == "# CORS\n"
    (project / "examples/guide/recipes.md").write_text("# Recipes\n")
    with pytest.raises(
        build.SiteError, match=r'^examples/guide/recipes.md isn\'t in README.md: add it to the table of "The guide"$'
    ):
        build.assemble()


@pytest.mark.parametrize("target", ["#nowhere", "nowhere.md", "nowhere.py", "../README.md#nowhere"])
def test_a_link_without_a_target_is_an_error(target: str, project: Path) -> None:
    (project / "integrations/README.md").write_text(f"# How\n\n[there]({target})\n")
    with pytest.raises(build.SiteError, match=f"^integrations/README.md links to {re.escape(target)}, which doesn't exist$"):
        build.assemble()


@dataclass
class Shown(HTMLParser):
    """A page of the site as a browser reads it: its ids, its links, and what it loads."""

    text: str
    ids: set[str] = field(default_factory=set[str])
    links: list[str] = field(default_factory=list[str])
    loaded: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.loaded += [values[name] for name in ("href", "src") if name in values and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Shown]:
    """The built site: each page by its path."""
    if find_spec("zensical") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Zensical here; `make docs` installs it")
    home = build.build(tmp_path_factory.mktemp("site"))
    return {path: Shown(path.read_text()) for path in home.parent.rglob("*.html")}


@pytest.mark.slow
def test_every_link_leads_to_an_existing_page_and_anchor(site: dict[Path, Shown]) -> None:
    root = next(path.parent for path in site if path.name == "404.html")
    broken: list[str] = []
    for path, page in site.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme:
                continue
            # The page for a 404 has absolute links, because it is shown anywhere.
            target = root / url.path[1:] if url.path.startswith("/") else path.parent / unquote(url.path) if url.path else path
            target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (url.fragment and unquote(url.fragment) not in site[target].ids):
                broken.append(f"{path.relative_to(root)}: {link}")
    assert broken == []
    assert len(site) > 50


@pytest.mark.slow
def test_the_site_has_each_page_and_loads_nothing_from_another_host(site: dict[Path, Shown]) -> None:
    root = next(path.parent for path in site if path.name == "404.html")
    expected = {root / page.path.replace(".md", ".html") for page in build.assemble().pages}
    assert set(site) == {*expected, root / "404.html"}
    loaded = {link for page in site.values() for link in page.loaded}
    assert {link for link in loaded if urlsplit(link).netloc} == set()
    for style in root.rglob("*.css"):
        assert not re.search(r"(url\(|@import) *[\"']?(https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_each_public_name_has_its_signature_and_its_docstring_without_private_modules(site: dict[Path, Shown]) -> None:
    reference = {path: page.text for path, page in site.items() if "reference" in path.parts}
    for name in NAMES:
        [text] = [text for text in reference.values() if f'id="{name}"' in text]
        # The next name begins with a heading that has its id.
        shown = re.split(r'<h\d id="gaman', text.partition(f'id="{name}"')[2])[0]
        assert name.rpartition(".")[2] in shown, name
        paragraphs = re.findall(r"<p>(.*?)</p>", shown, re.DOTALL)
        assert paragraphs, f"{name} has no docstring"
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        if inspect.isroutine(value) or (inspect.isclass(value) and value.__name__ == attribute):
            first = re.sub(r"[*`\s]", "", (inspect.getdoc(value) or "").split("\n\n")[0])
            assert re.sub(r"[*\s]", "", html.unescape(re.sub(r"<.*?>", "", paragraphs[0]))) == first, name
    for path, text in reference.items():
        assert not re.search(r"\b(gaman|gaman_session)\._", re.sub(r"<.*?>", "", text, flags=re.DOTALL)), path
