"""The site: cuts the project's Markdown files into pages, adds a reference of the public names, and has Zensical build it.

    python examples/guide/site/build.py

Every document stays plain Markdown, whose links work between files. The pages are made from the files that exist: the chapters in
the README's table, the README of each integration, each public module, and every other document that one of these links to.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from string import Template
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

# Each section of these documents is a page.
CUT = {"README.md", "integrations/gaman_session/README.md"}
# These sections of the README stay on the home page.
HOME = {"In FastAPI, Starlette or Litestar", "Install", "A first application"}
# These pages of the README begin a part of the navigation.
FIRST = {"The guide": "Guide", "How to work here": "Project"}

# Code comes first in both, because it may look like a link or a heading.
_LINK = re.compile(
    r"^ *```.*?^ *```$|(?P<code>`+)[^`].*?(?P=code)|\[(?P<text>(?:`[^`]*`|[^\[\]`])+)\]\((?P<target>[^()\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^ *```.*?^ *```$|^(?P<level>#+) (?P<title>[^\n]*)$", re.MULTILINE | re.DOTALL)


class SiteError(Exception):
    """A document has no place on the site, or a link doesn't lead anywhere. The message names it and the fix."""


@dataclass
class Page:
    """A page of the site: its path, the document that it comes from, and its Markdown."""

    path: str
    title: str
    document: str = ""
    text: str = ""
    below: list[Page] = field(default_factory=list["Page"])
    """The pages below this one in the navigation."""

    @property
    def entry(self) -> dict[str, Any]:
        """The page and those below it, as the navigation lists them."""
        return {self.title: [self.path, *(page.entry for page in self.below)] if self.below else self.path}


@dataclass
class Site:
    """The pages of each part of the navigation, in order."""

    parts: dict[str, list[Page]] = field(default_factory=dict[str, list[Page]])
    targets: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """The place on the site of a document's heading: by the document and the heading's anchor on GitHub, which may be empty."""

    @property
    def pages(self) -> list[Page]:
        """Every page, in order."""
        return [each for pages in self.parts.values() for page in pages for each in (page, *page.below)]


def assemble() -> Site:
    """Return the site, with each link leading to the page that its target is on."""
    site = Site({part: [] for part in ("Start", "Guide", "Sessions", "Integrations", "Reference", "Project")})
    add(site, "Start", "README.md", "index.md")
    for chapter in chapters():
        add(site, "Guide", chapter, f"guide/{PurePosixPath(chapter).name}")
    add(site, "Sessions", "integrations/gaman_session/README.md", "sessions/index.md")
    add(site, "Integrations", "integrations/README.md", "integrations/index.md")
    for readme in sorted(ROOT.glob("integrations/*/README.md")):
        document = readme.relative_to(ROOT).as_posix()
        if (document, "") not in site.targets:
            add(site, "Integrations", document, f"integrations/{readme.parent.name}.md")
    # The list grows while documents link to others.
    pages = site.pages
    for page in pages:
        for document in linked(page):
            if (document, "") not in site.targets:
                name = document.removesuffix("/README.md").removesuffix(".md").lower()
                pages += add(site, "Project", document, f"project/{name.replace('/', '-')}.md")
    for page in pages:
        page.text = _LINK.sub(partial(lead, site, page), page.text)
    site.parts["Reference"] = reference()
    return site


def chapters() -> list[str]:
    """Return the chapters of the guide, in the order of the README's table."""
    _, _, section = (ROOT / "README.md").read_text().partition("\n## The guide\n")
    listed = re.findall(r"^\| \[.*?\]\((examples/guide/[\w-]+\.md)\)", section, re.MULTILINE)
    for file in sorted(ROOT.glob("examples/guide/*.md")):
        if file.relative_to(ROOT).as_posix() not in listed:
            raise SiteError(f'examples/guide/{file.name} isn\'t in README.md: add it to the table of "The guide"')
    return listed


def add(site: Site, part: str, document: str, path: str) -> list[Page]:
    """Add the pages of a *document*, of which the first has the *path*, to a *part* of the site."""
    text = (ROOT / document).read_text()
    page = Page(path, "", document)
    pages = [page]
    done = is_section = 0
    seen: dict[str, int] = {}
    for heading in _HEADING.finditer(text):
        if not heading["level"]:
            continue
        level, title = len(heading["level"]), heading["title"]
        anchor = slug(title)
        seen[anchor] = number = seen.get(anchor, -1) + 1
        anchor += f"-{number}" if number else ""
        page.text += text[done : heading.start()]
        done = heading.end()
        if document in CUT and level == 2:
            is_section = title not in HOME
            if is_section:
                page = Page(str(PurePosixPath(path).with_name(f"{anchor}.md")), "", document)
                pages.append(page)
        if not page.title:
            page.title = title.replace("`", "")
            site.targets[document, anchor] = page.path
            page.text += f"# {title}"
        else:
            site.targets[document, anchor] = f"{page.path}#{anchor}"
            page.text += f"{'#' * (level - is_section)} {title} {{#{anchor}}}"
    page.text += text[done:]
    site.targets[document, ""] = path
    for page in pages:
        if page.title in FIRST and document == "README.md":
            site.parts[FIRST[page.title]].insert(0, page)
        else:
            site.parts[part].append(page)
    return pages


def slug(title: str) -> str:
    """Return the anchor that GitHub gives to a heading with this *title*."""
    return re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")


def linked(page: Page) -> list[str]:
    """Return the documents that a *page* links to."""
    targets = [resolve(page, link["target"]) for link in _LINK.finditer(page.text) if link["target"]]
    return [document for document, _ in targets if document.endswith(".md") and (ROOT / document).exists()]


def resolve(page: Page, target: str) -> tuple[str, str]:
    """Return the file, relative to ROOT, and the anchor of a link's *target*. A URL is its own file."""
    if re.match(r"\w+:", target):
        return target, ""
    path, _, anchor = target.partition("#")
    return normpath(PurePosixPath(page.document).parent / path) if path else page.document, anchor


def lead(site: Site, page: Page, link: re.Match[str]) -> str:
    """Return a *link* of a *page* with the place of its target on the site. A file without a page is named, not linked."""
    if not link["target"] or re.match(r"\w+:", link["target"]):
        return link[0]
    document, anchor = resolve(page, link["target"])
    place = site.targets.get((document, anchor))
    if place is None and (document.endswith(".md") or not (ROOT / document).exists()):
        raise SiteError(f"{page.document} links to {link['target']}, which doesn't exist")
    if place is None:
        return link["text"]
    path, mark, anchor = place.partition("#")
    target = relpath(path, PurePosixPath(page.path).parent) if path != page.path or not mark else ""
    return f"[{link['text']}]({target}{mark}{anchor})"


def public_modules() -> dict[str, list[str]]:
    """Return the public names of each public module of gaman, unless the modules before it have them all."""
    modules: dict[str, list[str]] = {}
    known: list[object] = []
    for file in sorted((ROOT / "gaman").rglob("*.py"), key=lambda file: (file.parent, file.name)):
        path = file.relative_to(ROOT).with_suffix("")
        parts = path.parts[:-1] if path.name == "__init__" else path.parts
        if any(part.startswith("_") for part in parts):
            continue
        module = importlib.import_module(".".join(parts))
        names = public_names(module)
        values = [getattr(module, name) for name in names]
        if not all(any(value is each for each in known) for value in values):
            modules[module.__name__] = names
        known += values
    return modules


def public_names(module: ModuleType) -> list[str]:
    """Return `__all__` of a *module*, or of the one that it re-exports; without either, the names that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    [other, *_] = re.findall(r"^from (\S+) import \*$", inspect.getsource(module), re.MULTILINE) or [module.__name__]
    if other != module.__name__:
        return public_names(importlib.import_module(other))
    members: dict[str, object] = vars(module)
    return [name for name, value in members.items() if name[0] != "_" and getattr(value, "__module__", "") == other]


def reference() -> list[Page]:
    """Return the pages of the public modules, each with the pages of its classes below it; errors are on the module's page."""
    pages: list[Page] = []
    for module, names in public_modules().items():
        groups: dict[str, list[str]] = {"Classes": [], "Functions": [], "Errors": [], "Types and constants": []}
        values = vars(importlib.import_module(module))
        for name in names:
            groups[kind(name, values[name])].append(name)
        classes = groups.pop("Classes")
        page = Page(f"reference/{module}/index.md", module)
        page.text = (
            f"# {module}\n\n::: {module}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}\n"
        )
        if classes:
            page.text += "\n## Classes\n\n| class | |\n|---|---|\n"
            page.text += "".join(f"| [`{name}`]({name}.md) | {summary(values[name])} |\n" for name in classes)
        for title, group in groups.items():
            if group:
                page.text += f"\n## {title}\n\n" + "".join(f"::: {module}.{name}\n\n" for name in group)
        for name in classes:
            text = f"::: {module}.{name}\n    options: {{heading_level: 1}}\n"
            page.below.append(Page(f"reference/{module}/{name}.md", name, text=text))
        pages.append(page)
    return pages


def kind(name: str, value: object) -> str:
    """Return the group of a public name."""
    if inspect.isclass(value) and value.__name__ == name:
        return "Errors" if issubclass(value, BaseException) else "Classes"
    # A class by another name is called like a function.
    return "Functions" if inspect.isroutine(value) or inspect.isclass(value) else "Types and constants"


def summary(value: object) -> str:
    """Return the first sentence of a docstring."""
    text = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0].replace("|", "\\|")


def write(site: Site, folder: Path) -> Path:
    """Write the pages of a *site* and its settings to a *folder*, whose content is lost; return the path of the settings."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / "assets", folder / "pages/assets")
    for page in site.pages:
        file = folder / "pages" / page.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page.text)
    nav = [{part: [page.entry for page in pages]} for part, pages in site.parts.items()]
    integrations = [file.parent.name for file in ROOT.glob("integrations/*/__init__.py")]
    settings = folder / "mkdocs.yml"
    template = Template((Path(__file__).parent / "mkdocs.yml").read_text())
    # YAML contains JSON.
    settings.write_text(template.substitute(nav=json.dumps(nav), integrations=json.dumps(integrations)))
    return settings


def build(folder: Path) -> Path:
    """Build the site in a *folder*, whose content is lost; return the path of the home page."""
    settings = write(assemble(), folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(settings)]
    if subprocess.run(command, check=False).returncode:
        raise SiteError("Zensical has built no site; its reason is above")
    return folder / "site/index.html"


if __name__ == "__main__":
    try:
        print(f"The site is ready: {build(ROOT / 'build/docs').as_uri()}")
    except SiteError as error:
        sys.exit(str(error))
