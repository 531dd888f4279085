"""What a user may do to a VM according to the current configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exporter.config import Grant
from exporter.errors import Refused
from exporter.model import VmState


@dataclass(frozen=True, slots=True)
class Permission:
    """The grants that let one user do one thing to one VM."""

    grants: tuple[Grant, ...]

    @property
    def allow_managed(self) -> bool:
        """Whether it extends to VMs that a manager such as libvirt runs."""
        return any(grant.allow_managed for grant in self.grants)

    @property
    def allow_unseen_neighbours(self) -> bool:
        """Whether a commit may start while other VMs do not answer."""
        return any(grant.unseen_neighbours == "allow" for grant in self.grants)

    def of(self, snapshot: VmState) -> tuple[Grant, ...]:
        """Return the grants that apply to this VM. Two grants never combine to allow more than each does."""
        return tuple(g for g in self.grants if g.allow_managed or not snapshot.manager)


def permission(grants: Iterable[Grant], user: str, verb: str, vm: str) -> Permission:
    """Return the grants that permit a user to do something to a VM.

    Raises:
        Refused: no grant does.
    """
    found = [grant for grant in grants if grant.permits(user, verb, vm)]
    if not found:
        raise Refused("not-granted", f"no grant permits {user!r} to {verb} on {vm!r}")
    return Permission(tuple(found))
