"""The project that `gaman new` writes: its tests pass, checkers find no fault, and a visitor logs in over a real socket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gaman._command_new import create_project
from tests.test_examples import Browser, serving


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "site"
    list(create_project(folder))
    return folder


def run(*arguments: str, cwd: Path) -> str:
    """Return the output of Python with *arguments*; AssertionError shows it if the status isn't 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GAMAN_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(project: Path) -> None:
    assert "4 passed" in run("-m", "pytest", "-W", "error", cwd=project)
    assert not (project / "users.db").exists()


@pytest.mark.slow
def test_mypy_and_ruff_find_no_fault(project: Path) -> None:
    assert "Success" in run("-m", "mypy", "--strict", ".", cwd=project)
    rules = ("--select", "ASYNC,B,E,F,I,N,PT,RET,RUF,S,SIM,UP", "--ignore", "S101", "--line-length", "132")
    run("-m", "ruff", "check", "--isolated", *rules, ".", cwd=project)
    run("-m", "ruff", "format", "--isolated", "--check", "--line-length", "132", ".", cwd=project)


def test_a_visitor_signs_up_logs_out_and_logs_in_and_is_remembered(project: Path) -> None:
    with serving("-m", "gaman", "serve", "main:app", "--port", "0", folder=project) as browser:
        assert browser.get("/account").headers["location"] == "/login?next=/account"
        name = {"name": "Angga <b>"}
        assert "at least 8" in browser.post("/signup", **name, password="short").text
        entered = browser.post("/signup", **name, password="correct horse")
        assert (entered.status_code, entered.headers["location"]) == (303, "/account")
        # The cookie ends with the browser.
        assert "Max-Age" not in entered.headers["set-cookie"]
        assert "SameSite=Lax" in entered.headers["set-cookie"]
        response = browser.get("/account")
        page = response.text
        # The browser applies the page's style.
        nonce = re.findall(r'<style nonce="([\w-]{22})">', page)[0]
        assert f"style-src 'self' 'nonce-{nonce}';" in response.headers["content-security-policy"]
        assert "You are Angga &lt;b&gt;." in page
        assert "Hello Angga &lt;b&gt;!" in page
        assert "Hello" not in browser.get("/account").text

        assert browser.get("/logout").status_code == 405
        stale = dict(browser.cookies)
        assert browser.post("/logout").headers["location"] == "/"
        assert browser.get("/account").status_code == 303
        assert "There is no user" in browser.post("/login", **name, password="correct house").text
        assert "There is no user" in browser.post("/login", name="Other", password="correct horse").text
        assert browser.post("/login?next=//evil.example", **name, password="correct horse").status_code == 400
        assert not browser.cookies

        remembered = browser.post("/login?next=/account", **name, password="correct horse", remember="on")
        assert remembered.headers["location"] == "/account"
        assert "Max-Age=2592000" in remembered.headers["set-cookie"]
        assert "You are" in browser.get("/account").text
        assert browser.cookies != stale
    assert b"correct horse" not in (project / "users.db").read_bytes()


def test_users_survive_a_restart(project: Path) -> None:
    def log_in(browser: Browser) -> int:
        return browser.post("/login", name="Siti", password="battery staple").status_code

    for status in (403, 303):
        with serving("-m", "gaman", "serve", "main:app", "--port", "0", folder=project) as browser:
            assert log_in(browser) == status
            browser.post("/signup", name="Siti", password="battery staple")
