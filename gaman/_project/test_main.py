"""Tests of the site; run them with `pytest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gaman.testing import SyncTestClient, TestClient

import users
from main import app

ANGGA = {"name": "Angga", "password": "correct horse"}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncTestClient]:
    """A browser without cookies, and a site without users."""
    monkeypatch.setattr(users, "FILE", tmp_path / "users.db")
    with TestClient(app, follow_redirects=True) as client:
        yield client


def test_a_user_signs_up_logs_out_and_logs_in_again(client: SyncTestClient) -> None:
    assert "You are Angga." in client.post("/signup", data=ANGGA).text
    client.post("/logout")
    assert client.get("/account").url.path == "/login"
    assert "You are Angga." in client.post("/login?next=/account", data=ANGGA).text


def test_a_sign_up_that_would_lead_to_another_site_creates_no_user(client: SyncTestClient) -> None:
    assert client.post("/signup?next=//evil.example", data=ANGGA).status_code == 400
    assert "You are Angga." in client.post("/signup", data=ANGGA).text


def test_a_wrong_password_opens_nothing(client: SyncTestClient) -> None:
    client.post("/signup", data=ANGGA)
    client.post("/logout")
    assert "There is no user" in client.post("/login", data=ANGGA | {"password": "correct house"}).text
    assert client.get("/account").url.path == "/login"


def test_a_name_that_is_taken_stays_with_its_user(client: SyncTestClient) -> None:
    client.post("/signup", data=ANGGA)
    assert "This name is taken." in client.post("/signup", data=ANGGA | {"password": "another horse"}).text
