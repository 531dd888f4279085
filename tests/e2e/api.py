"""The admin API as a user has it: an exporter with users and grants, and what it answers."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt

from exporter.api.verbs import VERBS
from tests.e2e.lab import PATIENCE_SECONDS, Exporter, Lab, wait_until

ROOT = "/api/v1"
#: Each user's password is the name, doubled.
ALL = "root"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    kind: str
    headers: Mapping[str, str]
    body: Any

    @property
    def problem(self) -> str:
        """The name of a problem, empty where it is none."""
        return str(self.body["type"]).rpartition("/")[2] if self.kind == PROBLEM else ""


PROBLEM = "application/problem+json"


class Admin:
    """A user of an exporter."""

    def __init__(self, exporter: Exporter, user: str = ALL) -> None:
        self.exporter = exporter
        self.user = user

    def get(self, path: str) -> Answer:
        """Ask for what is below /api/v1."""
        return self.send("GET", ROOT + path)

    def post(self, path: str, body: object, *, dry_run: bool = False) -> Answer:
        """Ask for a change."""
        query = "?dry_run=true" if dry_run else ""
        return self.send("POST", f"{ROOT}/admin{path}{query}", body)

    def commit(self, vm: str, device: str, *, dry_run: bool = False, **more: object) -> Answer:
        body = {"action": "commit", "device": device, **more}
        return self.post(f"/vms/{quote(vm, safe='')}/block-jobs", body, dry_run=dry_run)

    def change(
        self, vm: str, job_id: str, verb: str, *, dry_run: bool = False, **body: object
    ) -> Answer:
        return self.post(f"/vms/{vm}/block-jobs/{job_id}/{verb}", body, dry_run=dry_run)

    def snapshot(self, vm: str, device: str, file: Path, *, dry_run: bool = False) -> Answer:
        body = {"device": device, "file": str(file)}
        return self.post(f"/vms/{vm}/snapshots", body, dry_run=dry_run)

    def job(self, vm: str, job_id: str) -> Any:
        """Return a job, None where there is none."""
        answer = self.get(f"/vms/{vm}/block-jobs/{job_id}")
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def until(self, vm: str, job_id: str, **members: object) -> Any:
        """Wait until a job is so, and return it."""

        def so() -> Any:
            job = self.job(vm, job_id)
            return job if job and members.items() <= job.items() else None

        return wait_until(so, f"{job_id}: {members}")

    def layers(self, vm: str, device: str) -> list[str]:
        """Return the files of a backing chain, the active layer first."""
        devices = self.get(f"/vms/{vm}").body["devices"]
        found = next(each for each in devices if each["device"] == device)
        return [layer["file"] for layer in found["layers"]]

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send anything; bytes as they are, all else as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.exporter.url + path, data=data, method=method)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if self.user:
            token = base64.b64encode(f"{self.user}:{self.user * 2}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return _answer(answer)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error)


def _answer(response: Any) -> Answer:
    text = response.read()
    kind = response.headers.get_content_type()
    body = json.loads(text) if kind.endswith("json") else text.decode()
    return Answer(response.status, kind, dict(response.headers), body)


def grant(users: Sequence[str] = (ALL,), **more: object) -> dict[str, Any]:
    """Return a grant: without more, of everything on every VM but for files."""
    verbs = [verb for verb in VERBS if verb != "snapshot" or "directories" in more]
    return {"users": list(users), "verbs": verbs, "vms": ["*"], **more}


def admin(
    lab: Lab,
    *grants: Mapping[str, Any],
    flags: Sequence[str] = (),
    config: Mapping[str, object] | None = None,
    sockets: bool = True,
    users: Sequence[str] = (),
    before: Sequence[str] = (),
) -> Admin:
    """Start an exporter with the admin API; without grants one user may do everything.

    `users` exist without a grant; `before` is a command that runs it.
    """
    chosen = grants or (grant(directories=[str(lab.folder)], same_files=True),)
    names = {user for each in chosen for user in each["users"]}
    hashes = {user: hash_of(user) for user in sorted({*names, *users, ALL})}
    files = {
        "web.json": {"basic_auth_users": hashes},
        "config.json": {"admin": {"grants": list(chosen)}, **(config or {})},
    }
    for name, content in files.items():
        (lab.folder / name).write_text(json.dumps(content))
    exporter = lab.exporter(
        f"--web.config.file={lab.folder / 'web.json'}",
        f"--config.file={lab.folder / 'config.json'}",
        f"--admin.state-directory={lab.folder / 'state'}",
        "--web.enable-admin-api",
        *flags,
        sockets=sockets,
        before=before,
    )
    exporter.authorization = f"Basic {base64.b64encode(f'{ALL}:{ALL * 2}'.encode()).decode()}"
    return Admin(exporter)


def hash_of(user: str) -> str:
    """Return the hash of a user's password."""
    return bcrypt.hashpw((user * 2).encode(), bcrypt.gensalt(4)).decode()
