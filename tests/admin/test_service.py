"""What may change a VM, put together: what it needs, and what there is where it is off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter.admin import service
from exporter.admin.audit import OWN
from exporter.admin.requests import AdminRequests
from exporter.admin.service import AdminService
from exporter.api.verbs import VERBS
from exporter.collect.fleet import Fleet
from exporter.config.settings import Admin, Config
from exporter.errors import ConfigError
from tests.reach import Reach, grant


def configured(*users: str) -> Config:
    """A configuration with a grant of each user."""
    return Config(groups=(), admin=Admin(grants=tuple(grant(user) for user in users)))


def refusal(config: Config, *users: str) -> str:
    """Return what is said of an admin API that is enabled and wrong."""
    with pytest.raises(ConfigError) as caught:
        service.check(config, users, enabled=True)
    return str(caught.value)


def test_the_admin_api_needs_users() -> None:
    """Else anybody would be nobody, and nobody anybody."""
    for config in (configured(), configured("alice")):
        assert refusal(config).startswith("--web.enable-admin-api: ")
        assert "--web.config.file" in refusal(config)


def test_a_grant_is_for_users_that_there_are() -> None:
    """The first that is not is named, with the place of its grant."""
    refused = refusal(configured("alice", "bob", "carol"), "alice")

    assert refused.startswith("admin.grants[1]: ")
    assert "'bob'" in refused
    service.check(configured("alice"), {"alice", "bob"}, enabled=True)
    service.check(configured(), {"alice"}, enabled=True)


def test_where_it_is_off_nothing_is_needed() -> None:
    """One file may serve an exporter that changes nothing as well."""
    service.check(configured("alice"), (), enabled=False)


async def test_where_it_is_off_there_is_no_way_to_ask(sockets: Path, tmp_path: Path) -> None:
    """No actions, no account, and what is counted is what is done unasked."""
    reaching = AdminService(None)
    fleet = Fleet(configured(), observer=reaching.keeper, actions=reaching.trail.counts)
    async with reaching.over(fleet) as actions:
        assert actions is None

    assert reaching.ledger is None
    assert {action for action, _ in fleet.actions} == set(OWN)
    assert os.listdir(tmp_path) == []


async def test_where_it_is_on_every_verb_is_counted(sockets: Path, tmp_path: Path) -> None:
    """By the fleet, whose metrics tell of it."""
    reach = Reach(sockets, tmp_path / "new" / "state")
    async with reach.hand.over(reach.fleet) as actions:
        assert isinstance(actions, AdminRequests)
    await reach.close()

    assert {action for action, _ in reach.fleet.actions} == {*VERBS, *OWN}
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


def test_an_account_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Before anything is listened on."""
    (tmp_path / "x.json").write_text("nonsense")
    with pytest.raises(ConfigError) as caught:
        AdminService(str(tmp_path))

    assert str(caught.value).startswith(f"--admin.state-directory: {tmp_path}/x.json: ")


def test_a_state_directory_is_for_one_service(tmp_path: Path) -> None:
    """Each would know only its own records; it is free again when the other one has ended."""
    state = tmp_path / "state"
    refused = pytest.raises(ConfigError, match=f"^--admin.state-directory: {state}: ")
    with service.opened(str(state)), refused, service.opened(str(state)):
        pass

    with service.opened(str(state)) as again:
        assert again.ledger is not None
