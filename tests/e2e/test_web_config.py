"""A real Prometheus that comes over TLS, with a certificate and a password of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.e2e.api import admin, grant
from tests.e2e.lab import Lab, drive, wait_until
from tests.e2e.prometheus import Prometheus
from tests.pki import Pki, hashed

WEB = """\
tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  client_allowed_sans: [prometheus.example]
http_server_config:
  headers:
    Strict-Transport-Security: max-age=31536000
basic_auth_users:
  prometheus: HASH
rate_limit:
  interval: 1ms
  burst: 100
"""


def client(pki: Pki, folder: Path, name: str) -> dict[str, str]:
    """Write what a client needs, and return Prometheus's settings for it."""
    issued = pki.ca.issue_cert(name)
    (folder / f"{name}.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (folder / f"{name}.key").write_bytes(issued.private_key_pem.bytes())
    return {
        "ca_file": str(folder / "ca.pem"),
        "cert_file": str(folder / f"{name}.pem"),
        "key_file": str(folder / f"{name}.key"),
    }


def test_prometheus_scrapes_over_tls_as_a_user(lab: Lab) -> None:
    """Who lacks one of the two does not; a renewed certificate and password go on at once."""
    folder, pki = lab.folder, Pki()
    pki.write(folder)
    web, password = folder / "web.yml", folder / "password"
    password.write_text("first")
    web.write_text(WEB.replace("HASH", hashed("first")))
    lab.qemu("vm", *drive("disk0", lab.image("disk")))
    exporter = lab.exporter(f"--web.config.file={web}")
    user = {"basic_auth": {"username": "prometheus", "password_file": str(password)}}
    good = {"tls_config": client(pki, folder, "prometheus.example")}
    other = {"tls_config": client(pki, folder, "other.example")}
    nobody = {"tls_config": {"ca_file": str(folder / "ca.pem")}}
    settings = {
        "good": good | user,
        "without user": good,
        "other name": other | user,
        "without certificate": nobody | user,
    }
    target = exporter.url.removeprefix("http://")
    judge: Prometheus = lab.keep(
        Prometheus(
            folder,
            dict.fromkeys(settings, target),
            settings_of={job: {"scheme": "https"} | each for job, each in settings.items()},
        )
    )
    wait_until(lambda: judge.has_scraped(2), "two scrapes of each job")

    wait_until(lambda: judge.query("qemu_vm_up") == {"good": 1}, "a scrape in time")
    assert judge.query("max_over_time(up[1h])") == {
        "good": 1, "without user": 0, "other name": 0, "without certificate": 0,
    }  # fmt: skip

    def errors() -> dict[str, str]:
        targets = judge.api("targets")["activeTargets"]
        return {each["labels"]["job"]: each["lastError"] for each in targets}

    told = {"good": "", "without user": "server returned HTTP status 401 Unauthorized"}.items()
    wait_until(lambda: told <= errors().items(), "a scrape of each in time")
    # The connection ends; whether with an alert of TLS depends on Python's version.
    assert all(error for job, error in errors().items() if job != "good")

    pki.write(folder)
    password.write_text("second")
    web.write_text(WEB.replace("HASH", hashed("second")))
    wait_until(lambda: "web configuration reloaded" in exporter.said(), "the new files are read")
    scrape = f'timestamp(up{{job="good"}} == 1) > {time.time()}'
    wait_until(lambda: judge.query(scrape), "a scrape with the new files")
    reloaded = "qemu_exporter_config_last_reload_successful"
    wait_until(lambda: judge.query(reloaded) == {"good": 1}, "it says so")


def test_a_grant_of_a_user_who_is_taken_out_is_told_of_before_the_next_start(lab: Lab) -> None:
    """The user is out at once; the next start, whenever that is, is refused."""
    root = admin(lab, grant(users=["root", "ann"]))
    web = lab.folder / "web.json"
    content = json.loads(web.read_text())
    del content["basic_auth_users"]["ann"]
    web.write_text(json.dumps(content))
    before = root.get("/vms").status
    root.user = "ann"
    after = root.get("/vms").status

    assert (before, after) == (200, 401)
    assert "the next start will be refused" in root.exporter.said()
    assert "user 'ann' is not in --web.config.file" in root.exporter.said()
