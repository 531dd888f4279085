"""Passwords: who is let in, what is remembered, and who waits for whom."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import bcrypt
import pytest

from exporter.web import passwords
from exporter.web.passwords import Passwords
from tests.fakeqmp import until
from tests.pki import hashed

USERS = {"prometheus": hashed("right"), "operator": hashed("other")}
HOME = "192.0.2.1"


class Bcrypt:
    """The real one, which counts, and stands still where a test wants it to."""

    def __init__(self) -> None:
        self.checked: list[tuple[bytes, bytes]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        """Check a password."""
        self.checked.append((password, hashed))
        assert self.free.wait(60)
        return bcrypt.checkpw(password, hashed)

    @property
    def passwords(self) -> list[bytes]:
        """What was checked, in its order."""
        return [password for password, _ in self.checked]


@pytest.fixture
def slow() -> Bcrypt:
    """The function that checks."""
    return Bcrypt()


@pytest.fixture
async def known(slow: Bcrypt, request: pytest.FixtureRequest) -> AsyncIterator[Passwords]:
    """What is under test, with other limits where a test says so."""
    made = Passwords(slow, **getattr(request, "param", {}))
    yield made
    slow.free.set()
    await made.close()


Ask = Callable[..., Awaitable[bool | None]]


@pytest.fixture
def ask(known: Passwords) -> Ask:
    """Asks whether a password is right."""

    async def asked(name: str, password: bytes, address: str = HOME) -> bool | None:
        return await known.right(USERS, name, password, address)

    return asked


async def test_a_user_with_the_right_password_is_let_in(ask: Ask) -> None:
    """And nobody else is, with whatever password."""
    assert await ask("prometheus", b"right") is True
    assert await ask("prometheus", b"wrong") is False
    assert await ask("prometheus", b"other") is False
    assert await ask("operator", b"other") is True
    assert await ask("nobody", b"right") is False
    assert await ask("", b"") is False


async def test_a_password_is_bytes() -> None:
    """It need not be UTF-8."""
    users = {"a": bcrypt.hashpw(b"\xff\xfe", bcrypt.gensalt(4)).decode()}
    known = Passwords()

    assert await known.right(users, "a", b"\xff\xfe", HOME) is True
    assert await known.right(users, "a", b"\xff\xff", HOME) is False
    await known.close()


async def test_a_verdict_is_remembered(ask: Ask, slow: Bcrypt) -> None:
    """A good one and a bad one; bcrypt is asked once for each."""
    for _ in range(3):
        assert await ask("prometheus", b"right") is True
        assert await ask("prometheus", b"wrong") is False
        assert await ask("nobody", b"wrong") is False

    assert len(slow.checked) == 3


async def test_the_same_question_at_the_same_time_is_one(ask: Ask, slow: Bcrypt) -> None:
    """Two Prometheus servers that come back after a restart make one check."""
    slow.free.clear()
    asked = [asyncio.ensure_future(ask("prometheus", b"right", str(n))) for n in range(50)]
    await until(lambda: slow.checked)
    slow.free.set()

    assert await asyncio.gather(*asked) == [True] * 50
    assert len(slow.checked) == 1


async def test_who_hangs_up_takes_nobody_elses_verdict_away(ask: Ask, slow: Bcrypt) -> None:
    """The check goes on for those who still wait."""
    slow.free.clear()
    first, second = (asyncio.ensure_future(ask("prometheus", b"right")) for _ in range(2))
    await until(lambda: slow.checked)
    first.cancel()
    await asyncio.sleep(0)
    slow.free.set()

    assert await second is True
    assert first.cancelled()
    assert len(slow.checked) == 1


@pytest.mark.parametrize("known", [{"remembered": 10}], indirect=True)
async def test_a_user_who_was_let_in_is_never_forgotten(ask: Ask, slow: Bcrypt) -> None:
    """Not for any number of those who were not."""
    assert await ask("prometheus", b"right")
    for number in range(100):
        assert await ask("prometheus", b"guess %d" % number) is False
    assert await ask("prometheus", b"right")

    assert slow.passwords.count(b"right") == 1


@pytest.mark.parametrize("known", [{"remembered": 2}], indirect=True)
async def test_as_many_bad_verdicts_are_remembered_as_are_said(
    ask: Ask, slow: Bcrypt, known: Passwords
) -> None:
    """What was not asked for longest is forgotten first."""
    for guess in (b"a", b"b", b"a", b"c", b"a", b"b"):
        await ask("prometheus", guess)

    assert slow.passwords == [b"a", b"b", b"c", b"b"]
    assert len(known._bad) == 2


async def test_a_hash_that_is_changed_counts_at_once(known: Passwords) -> None:
    """What was remembered for the old one is worth nothing."""
    before, after = {"a": hashed("old")}, {"a": hashed("new")}
    assert await known.right(before, "a", b"old", HOME) is True
    assert await known.right(before, "a", b"new", HOME) is False

    assert await known.right(after, "a", b"old", HOME) is False
    assert await known.right(after, "a", b"new", HOME) is True


async def test_a_user_who_is_removed_is_out_at_once_and_forgotten(known: Passwords) -> None:
    """What is remembered of good ones is never more than there are users."""
    for number in range(20):
        users = {f"user{number}": USERS["prometheus"]}
        assert await known.right(users, f"user{number}", b"right", HOME) is True
        assert await known.right(users, "user", b"right", HOME) is False

    assert len(known._good) == 1
    assert await known.right(users, "user0", b"right", HOME) is False


async def test_what_is_remembered_cannot_be_put_together_anew(known: Passwords) -> None:
    """CVE-2022-46146: whoever knew the hash of `admin` could have the cache let them in.

    They asked first as a user whose name is `admin` and that hash, so that the cache held the same
    text as for `admin` with a password that begins with the hash of users that there are not.
    """
    users = {"admin": hashed("secret")}
    name = "admin" + users["admin"]
    assert await known.right(users, name, b"password", HOME) is False
    nobody = known._nobody(users, name)

    assert await known.right(users, "admin", f"{nobody}password".encode()[:72], HOME) is False
    parts = (b"admin", users["admin"].encode(), f"{nobody}password".encode())
    assert known._digest(*parts) != known._digest(parts[0] + parts[1], parts[2], b"")
    assert known._digest(b"ab", b"c", b"") != known._digest(b"a", b"bc", b"")
    assert known._digest(b"ab", b"", b"c") != known._digest(b"ab", b"c", b"")


async def test_what_is_remembered_holds_no_password(known: Passwords, ask: Ask) -> None:
    """Nor anything that another process could compare one with."""
    await ask("prometheus", b"right")
    await ask("prometheus", b"wrong")

    assert {len(digest) for digest in (*known._good.values(), *known._bad)} == {32}
    assert known._digest(b"a") == known._digest(b"a")
    assert known._digest(b"a") != Passwords()._digest(b"a")
    assert not known._open


@pytest.mark.parametrize("password", [b"x" * 73, b"x" * 10_000, b"right\0", b"right\0right", b"\0"])
async def test_what_bcrypt_would_cut_or_repeat_is_wrong(
    ask: Ask, slow: Bcrypt, password: bytes
) -> None:
    """`right NUL right` has the hash of `right`, and old versions take 72 bytes of more."""
    assert bcrypt.checkpw(b"right\0right", USERS["prometheus"].encode())
    assert await ask("prometheus", password) is False
    assert await ask("nobody", password) is False
    assert not slow.checked


async def test_a_password_of_72_bytes_is_as_long_as_one_may_be(known: Passwords) -> None:
    """It is not cut."""
    users = {"a": hashed("x" * 72)}

    assert await known.right(users, "a", b"x" * 72, HOME) is True
    assert await known.right(users, "a", b"x" * 71, HOME) is False


async def test_what_bcrypt_refuses_is_wrong() -> None:
    """A hash that only it finds a fault with lets nobody in."""
    users = {"a": "$2b$10$" + "/" * 53}
    known = Passwords()

    assert await known.right(users, "a", b"x", HOME) is False
    await known.close()


async def test_a_user_that_there_is_not_takes_as_long_as_one_that_there_is(
    known: Passwords, slow: Bcrypt
) -> None:
    """The same cost for a name each time, and each cost of those that there are for some names."""
    users = {"a": hashed("a"), "b": "$2y$05$" + "." * 53}
    for _ in range(2):
        for number in range(20):
            guess = b"x%d" % number
            assert await known.right(users, f"user{number}", guess, HOME) is False
            known._bad.clear()
    hashes = [found for _, found in slow.checked]

    assert {each[:7] for each in hashes} == {b"$2b$04$", b"$2y$05$"}
    assert hashes[:20] == hashes[20:]


async def test_those_who_wait_take_turns_by_address(ask: Ask, slow: Bcrypt) -> None:
    """Who comes with one password waits for one of each other address, not for all of them."""
    slow.free.clear()
    guesses = [
        asyncio.ensure_future(ask("prometheus", b"%d of %d" % (guess, address), str(address)))
        for address in range(3)
        for guess in range(10)
    ]
    await until(lambda: slow.checked)
    good = asyncio.ensure_future(ask("prometheus", b"right"))
    await asyncio.sleep(0)
    slow.free.set()

    assert await good is True
    assert await asyncio.gather(*guesses) == [False] * 30
    assert slow.passwords[:5] == [b"0 of 0", b"0 of 1", b"0 of 2", b"1 of 0", b"right"]


async def test_one_address_may_have_so_many_waiting(ask: Ask, slow: Bcrypt) -> None:
    """More are told to come later, and another address is not."""
    slow.free.clear()
    running = asyncio.ensure_future(ask("nobody", b"first"))
    await until(lambda: slow.checked)
    most = passwords.WAITING_OF_ONE
    waiting = [asyncio.ensure_future(ask("nobody", b"%d" % n)) for n in range(most)]
    await asyncio.sleep(0)
    assert await ask("nobody", b"one more") is None
    good = asyncio.ensure_future(ask("prometheus", b"right", "198.51.100.1"))
    await asyncio.sleep(0)
    slow.free.set()

    assert await asyncio.gather(running, *waiting) == [False] * (most + 1)
    assert await good is True
    assert await ask("nobody", b"one more") is False


async def test_those_of_one_address_take_turns_by_user(ask: Ask, slow: Bcrypt) -> None:
    """Behind a proxy all have one address: guesses of one user's password cost no other user's first login."""
    slow.free.clear()
    running = asyncio.ensure_future(ask("operator", b"first"))
    await until(lambda: slow.checked)
    most = passwords.WAITING_OF_ONE
    guesses = [asyncio.ensure_future(ask("operator", b"%d" % n)) for n in range(most)]
    await asyncio.sleep(0)
    good = asyncio.ensure_future(ask("prometheus", b"right"))
    await asyncio.sleep(0)
    slow.free.set()

    assert await good is True
    verdicts = await asyncio.gather(running, *guesses)
    assert (verdicts.count(None), verdicts[-1]) == (1, None)
    assert slow.passwords[:3] == [b"first", b"0", b"right"]


async def test_where_all_places_are_taken_who_has_most_gives_one_up(
    ask: Ask, slow: Bcrypt, known: Passwords
) -> None:
    """The newest of the address that has most is told to come later."""
    slow.free.clear()
    running = asyncio.ensure_future(ask("nobody", b"first", "first"))
    await until(lambda: slow.checked)
    one, all_ = passwords.WAITING_OF_ONE, passwords.WAITING_OF_ALL
    waiting = [
        asyncio.ensure_future(ask("nobody", b"%d of %d" % (guess, address), str(address)))
        for address in range(all_ // one)
        for guess in range(one)
    ]
    await asyncio.sleep(0)
    good = asyncio.ensure_future(ask("prometheus", b"right"))
    await asyncio.sleep(0)
    assert len(known._waiting) == all_
    slow.free.set()

    assert await good is True
    verdicts = await asyncio.gather(*waiting)
    assert verdicts.count(None) == 1
    assert verdicts[one - 1] is None
    assert verdicts.count(False) == all_ - 1
    assert await running is False
    assert not known._open
    assert not known._waiting


@pytest.mark.parametrize("known", [{"waiting_of_all": 3}], indirect=True)
async def test_where_all_places_are_taken_by_as_many_addresses_nobody_gives_way(
    ask: Ask, slow: Bcrypt
) -> None:
    """Who comes last is told to come later."""
    slow.free.clear()
    asked = [asyncio.ensure_future(ask("nobody", b"x%d" % n, str(n))) for n in range(5)]
    await until(lambda: slow.checked)
    slow.free.set()

    assert sorted(map(str, await asyncio.gather(*asked))) == ["False"] * 3 + ["None"] * 2


async def test_an_attack_hurts_nobody_who_was_let_in(ask: Ask, slow: Bcrypt) -> None:
    """10,000 requests with 500 wrong pairs: a scrape among them never waits for any check."""
    assert await ask("prometheus", b"right")
    slow.free.clear()
    pairs = [(f"user{n % 50}", b"guess %d" % n) for n in range(500)]
    attack = [
        asyncio.ensure_future(ask(*pairs[n % 500], f"203.0.113.{n % 7}")) for n in range(10_000)
    ]
    await until(lambda: len(slow.checked) == 2)
    # bcrypt stands still now, and all of them wait for it.
    for _ in range(20):
        assert await ask("prometheus", b"right") is True
    slow.free.set()
    verdicts = await asyncio.gather(*attack)

    assert set(verdicts) <= {False, None}
    assert slow.passwords.count(b"right") == 1
    assert len(slow.checked) <= 501


async def test_who_waits_at_the_end_gets_no_verdict(slow: Bcrypt) -> None:
    """The end of the program does not wait for checks."""
    known = Passwords(slow)
    slow.free.clear()
    asked = asyncio.ensure_future(known.right(USERS, "prometheus", b"right", HOME))
    await until(lambda: slow.checked)
    await known.close()
    asked.cancel()
    slow.free.set()

    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_the_thread_that_checks_gives_way_to_the_event_loop() -> None:
    """It is nicer than the rest of the process, which stays as it was."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def check(password: bytes, hashed: bytes) -> bool:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return True

    passwords = Passwords(check)
    await passwords.right({"a": "$2b$04$"}, "a", b"x", "here")
    await passwords.close()

    assert seen == [min(before + 10, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_where_a_sandbox_forbids_to_be_nicer_passwords_are_checked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A filter of system calls says EPERM; nobody may wait forever for that."""

    def forbidden(_: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "nice", forbidden)
    passwords = Passwords(lambda password, hashed: True)

    assert await passwords.right({"a": "$2b$04$"}, "a", b"x", "here")
    await passwords.close()
