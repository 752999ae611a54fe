"""A store that fails after it has given a session a new id: the response carries that id, because the old one is dead."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import pytest

from gaman.session import Outcome, Record, Session, SessionStoreError
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.redis import RedisDriver
from tests import servers
from tests.serving import until
from tests.session.sites import Browser, Clock, Reply, Sealing, Site, Work, serving, setting

pytestmark = pytest.mark.anyio


class Replicated(Sealing):
    """A store whose replicas may be down: it then makes a change, and raises because no replica has confirmed it."""

    def __init__(self) -> None:
        super().__init__()
        self.lacks_replicas = False
        self.failing: Collection[str] = ()
        """Calls that fail, and change nothing."""
        self.losing: Collection[str] = ()
        """Calls that succeed, and whose reply is lost."""

    def _before(self, call: str) -> None:
        if call in self.failing:
            raise SessionStoreError("replicated", call)

    def _after(self, call: str) -> None:
        if call in self.losing:
            raise SessionStoreError("replicated", call)
        if self.lacks_replicas:
            raise SessionStoreError("replicated", call, is_unconfirmed=True)

    async def create(self, id: str, record: Record) -> Any:
        self._before("create")
        outcome = await super().create(id, record)
        self._after("create")
        return outcome

    async def apply(self, *arguments: Any, **options: Any) -> Outcome:
        self._before("apply")
        outcome = await super().apply(*arguments, **options)
        self._after("apply")
        return outcome

    async def rename(self, *arguments: Any, **options: Any) -> Outcome:
        self._before("rename")
        outcome = await super().rename(*arguments, **options)
        self._after("rename")
        return outcome

    async def destroy(self, id: str, *, now: float) -> None:
        self._before("destroy")
        await super().destroy(id, now=now)
        self._after("destroy")


@pytest.fixture
def driver() -> Replicated:
    return Replicated()


@pytest.fixture
async def site(driver: Replicated, clock: Clock) -> AsyncIterator[Site]:
    async with serving(Site(driver, clock, max_size=1000)) as opened:
        yield opened


async def log_in(session: Session) -> None:
    await session.regenerate()
    await session.set("user", "Angga")


async def save_login(session: Session) -> None:
    await log_in(session)
    await session.save()


async def count_login(session: Session) -> None:
    await log_in(session)
    await session.update("logins", lambda logins: logins + 1, 0)


LOGINS = [log_in, save_login, count_login]


async def begun(site: Site) -> Browser:
    """Return a browser with a session."""
    browser = site.browser()
    await browser.do(setting(cart=[1]))
    return browser


async def assert_carries_the_new_id(reply: Reply, browser: Browser, old: str | None, status: int = 503) -> None:
    """The response has *status* and the cookie of a live session; the *old* one is dead."""
    assert reply.status == status
    assert reply.set_cookie is not None
    assert reply.headers.getall("cache-control") == ["no-store"]
    assert b"Traceback" not in reply.body
    assert browser.token not in (old, None)
    assert await Browser(browser.site, old).all() == {}
    assert (await browser.all())["cart"] == [1]


@pytest.mark.parametrize("work", LOGINS)
async def test_a_503_carries_the_new_id_if_the_store_has_renamed_the_session_unconfirmed(
    driver: Replicated, site: Site, work: Work
) -> None:
    browser = await begun(site)
    old, failures = browser.token, site.sessions.counters.store_errors
    driver.lacks_replicas = True
    reply = await browser.request(work)
    assert site.sessions.counters.store_errors == failures + 1
    driver.lacks_replicas = False
    await assert_carries_the_new_id(reply, browser, old)
    assert (await browser.all())["user"] == "Angga"
    # The visitor tries again.
    await browser.do(work)
    assert (await browser.all())["user"] == "Angga"


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_handler_that_catches_the_error_answers_200_only_if_the_change_is_confirmed_then(
    driver: Replicated, site: Site, recovers: bool
) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(SessionStoreError):
            await save_login(session)
        assert await session.all() == {"cart": [1], "user": "Angga"}
        await session.set("later", 1)
        driver.lacks_replicas = not recovers

    browser = await begun(site)
    old = browser.token
    driver.lacks_replicas = True
    reply = await browser.request(work)
    driver.lacks_replicas = False
    await assert_carries_the_new_id(reply, browser, old, 200 if recovers else 503)
    assert await browser.all() == {"cart": [1], "user": "Angga", "later": 1}


async def test_a_handler_that_fails_after_that_error_sends_the_new_id_with_its_500(driver: Replicated, site: Site) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(SessionStoreError):
            await save_login(session)
        await session.set("later", 1)
        raise ValueError("it fails")

    browser = await begun(site)
    old = browser.token
    driver.lacks_replicas = True
    reply = await browser.request(work)
    assert reply.status == 500
    assert browser.token not in (old, None)
    # The saved change may be in the store; the later one is undone.
    assert await browser.all() == {"cart": [1], "user": "Angga"}


@pytest.mark.parametrize("work", LOGINS)
async def test_a_503_for_a_new_session_that_is_unconfirmed_logs_no_visitor_in(driver: Replicated, site: Site, work: Work) -> None:
    driver.lacks_replicas = True
    reply = await site.request(work)
    assert (reply.status, reply.set_cookie) == (503, None)


@pytest.mark.parametrize("work", LOGINS)
async def test_a_rename_that_may_have_failed_leaves_the_old_cookie(driver: Replicated, site: Site, work: Work) -> None:
    for faults in ({"failing": ("rename",)}, {"losing": ("rename",)}):
        browser = await begun(site)
        vars(driver).update(faults)
        reply = await browser.request(work)
        assert (reply.status, reply.set_cookie) == (503, None)
        driver.failing = driver.losing = ()


async def fail_to_write(session: Session, driver: Replicated) -> None:
    driver.failing = ("apply",)
    await session.set("later", 1)


async def grow_too_large(session: Session, driver: Replicated) -> None:
    await session.set("later", "x" * 2000)


async def write_too_much(session: Session, driver: Replicated) -> None:
    # Another request has filled the session since.
    assert session.id is not None
    await driver.apply(session.id, {"other": bytes(900)}, (), now=4_000_000_000.0, deadline=None, max_size=1 << 20)
    await session.set("later", "x" * 200)


@pytest.mark.parametrize(("fail", "status"), [(fail_to_write, 503), (grow_too_large, 413), (write_too_much, 413)])
async def test_a_failure_after_a_regenerate_that_was_saved_carries_the_new_id(
    driver: Replicated, site: Site, fail: Callable[[Session, Replicated], Any], status: int
) -> None:
    async def work(session: Session) -> None:
        await save_login(session)
        await fail(session, driver)

    browser = await begun(site)
    old = browser.token
    reply = await browser.request(work)
    driver.failing = ()
    await assert_carries_the_new_id(reply, browser, old, status)
    assert "later" not in await browser.all()


async def test_a_login_that_fails_to_end_the_owners_oldest_session_carries_the_new_id(driver: Replicated, clock: Clock) -> None:
    async def work(session: Session) -> None:
        await log_in(session)
        await session.set_owner("user:1")

    async with serving(Site(driver, clock, max_sessions_per_owner=1)) as site:
        await (await begun(site)).do(work)
        browser = await begun(site)
        old = browser.token
        driver.failing = ("destroy",)
        reply = await browser.request(work)
        driver.failing = ()
        await assert_carries_the_new_id(reply, browser, old)


# With Redis


@pytest.mark.parametrize("work", [log_in, save_login])
async def test_a_503_of_a_redis_whose_replica_is_frozen_carries_the_new_id(clock: Clock, work: Work) -> None:
    with servers.RedisServer("--repl-diskless-sync-delay", "0") as master:
        replica = servers.RedisServer("--replicaof", "127.0.0.1", str(master.port))
        with replica, master.client() as client:
            until(lambda: client.info("replication")["connected_slaves"] == 1, "the replica to join")
            driver = RedisDriver(url=master.url, wait_replicas=1)
            async with serving(Site(driver, clock)) as site:
                browser = await begun(site)
                old = browser.token
                replica.send_signal(signal.SIGSTOP)
                reply = await browser.request(work)
                await assert_carries_the_new_id(reply, browser, old)
                replica.send_signal(signal.SIGCONT)
                await browser.do(work)
                assert await browser.all() == {"cart": [1], "user": "Angga"}


async def test_a_create_that_is_repeated_ends_the_session_of_the_first_one_and_not_its_own(clock: Clock) -> None:
    class Owned(MemoryDriver):
        is_losing = False

        async def create(self, id: str, record: Record) -> Any:
            outcome = await super().create(id, record)
            if self.is_losing:
                self.is_losing = False
                raise SessionStoreError("memory", "create")
            return outcome

    driver = Owned()

    async def twice(session: Session) -> None:
        driver.is_losing = True
        await session.login("user:1")
        with pytest.raises(SessionStoreError):
            await session.save()
        await session.save()

    async with serving(Site(driver, clock, max_sessions_per_owner=1)) as site:
        # The ids are random, and the order of two ids decided which session was ended.
        for _ in range(8):
            await (browser := site.browser()).do(twice)
            assert await browser.do(Session.owner) == "user:1"
            assert await site.sessions.count() == 1
