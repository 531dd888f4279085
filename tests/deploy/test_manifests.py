"""The manifests and the chart, by the schemas that Kubernetes and prometheus-operator publish.

No cluster can be had here. kubectl builds the manifests, Helm's own engine renders the chart (as a
library), and what comes out of both is held to the schemas, and to each other.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from exporter import __version__
from exporter.cli.serve_flags import parser
from exporter.config.settings import Settings, load

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "qemu-block-exporter"
SCHEMAS = ROOT / "tests" / "data" / "schemas"
NAME = "qemu-block-exporter"
#: The oldest that the chart says it takes and that has its schemas here, and the newest.
VERSIONS = ("1.25", "1.37")
#: Of operators' resources, whose schemas are kept here.
OPERATOR = ("PodMonitor", "PrometheusRule")
#: Labels that Helm has and kustomize has not.
HELM_LABELS = ("app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart")
ADMIN = {
    "enabled": True,
    "config": yaml.safe_load((KUBERNETES / "admin" / "config.yml").read_text()),
}
#: What users may change, all at once.
CHANGED = {
    "image": {"repository": "registry.example/exporter", "tag": "1", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "sockets": {"path": "/run/vms", "group": 36},
    "images": ["/srv/images", "/mnt/nfs"],
    "hostPID": True,
    "extraArgs": ["--log.format=json"],
    "priorityClassName": "system-node-critical",
    "podAnnotations": {"a": "b"},
    "networkPolicy": {"from": "observability"},
    "monitoring": {"labels": {"release": "stack"}},
    "admin": ADMIN,
}
Objects = dict[str, dict[str, Any]]


def by_kind(documents: Iterator[Any]) -> Objects:
    """Return objects by kind: there is one of each."""
    found = [document for document in documents if document]
    kinds = {document["kind"]: document for document in found}
    assert len(kinds) == len(found)
    return kinds


def kustomized(folder: str) -> Objects:
    """Return what `kubectl apply -k` would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(KUBERNETES / folder)]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not built.stderr
    return by_kind(yaml.safe_load_all(built.stdout))


def rendered(values: dict[str, Any]) -> Objects:
    """Return what `helm install` would send."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=NAME, namespace=NAME)
    return by_kind(yaml.safe_load(text) for path, text in files.items() if path.endswith(".yaml"))


SETS: dict[str, Callable[[], Objects]] = {
    "base": lambda: kustomized("base"),
    "monitoring": lambda: kustomized("monitoring"),
    "admin": lambda: kustomized("admin"),
    "helm": lambda: rendered({}),
    "helm, changed": lambda: rendered(CHANGED),
    "helm, without": lambda: rendered({
        "networkPolicy": {"enabled": False}, "monitoring": {"podMonitor": False, "rules": False}, "images": [],
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def sets() -> dict[str, Objects]:
    """Every set of objects that is shipped."""
    return {name: make() for name, make in SETS.items()}


def strict(schema: Any) -> Any:
    """Return a schema that takes no unknown field: the API server would drop it without a word."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema["properties"]:
        found.setdefault("additionalProperties", False)
    return found


def complaints(thing: dict[str, Any], version: str) -> list[str]:
    """Return what the schema of an object's kind has against it."""
    if thing["kind"] in OPERATOR:
        schema = strict(json.loads((SCHEMAS / f"{thing['kind']}.json").read_text()))
        return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(thing)]
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_every_object_is_one_by_the_published_schema(
    sets: dict[str, Objects], name: str, version: str
) -> None:
    """With no field that its kind does not know."""
    for thing in sets[name].values():
        assert complaints(thing, version) == [], thing["kind"]


@pytest.mark.parametrize("kind", ["DaemonSet", "NetworkPolicy", *OPERATOR])
def test_the_schemas_refuse_a_field_that_is_not_there(sets: dict[str, Objects], kind: str) -> None:
    """They would be no judges else."""
    thing = sets["monitoring"][kind]
    wrong = {**thing, "spec": {**thing["spec"], "hostPorts": True}}

    assert complaints(wrong, VERSIONS[-1])


def plain(thing: Any) -> Any:
    """Return an object without what only Helm or only kustomize adds, its lists in order."""
    if isinstance(thing, dict):
        found = {key: plain(value) for key, value in thing.items() if key not in HELM_LABELS}
        found.pop("imagePullPolicy", None)  # what the chart says is what goes without saying
        if "labels" in found:
            found.pop("annotations", None)
        return found
    if isinstance(thing, list):
        return sorted(
            (plain(each) for each in thing), key=lambda each: json.dumps(each, sort_keys=True)
        )
    return thing


def test_the_chart_makes_what_the_manifests_make(sets: dict[str, Objects]) -> None:
    """By its defaults, but for the namespace."""
    manifests = {kind: thing for kind, thing in sets["monitoring"].items() if kind != "Namespace"}

    assert plain(sets["helm"]) == plain(manifests)


def test_the_chart_has_the_admin_api_as_the_manifests_have_it(sets: dict[str, Objects]) -> None:
    """The same flags, volumes, probes, and the same door for Prometheus."""
    chart, manifests = rendered({"admin": ADMIN}), sets["admin"]
    for kind in ("DaemonSet", "PodMonitor"):
        assert plain(chart[kind]["spec"]) == plain(unhashed(manifests[kind]["spec"])), kind
    assert yaml.safe_load(chart["ConfigMap"]["data"]["config.yml"]) == yaml.safe_load(
        manifests["ConfigMap"]["data"]["config.yml"]
    )


def unhashed(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec in which the ConfigMap has the name that it was given."""
    for volume in spec.get("template", {}).get("spec", {}).get("volumes", []):
        if "configMap" in volume:
            assert volume["configMap"]["name"].startswith(f"{NAME}-")
            volume["configMap"]["name"] = NAME
    return spec


def test_helm_has_nothing_against_the_chart() -> None:
    """No error and no warning of `helm lint`."""
    result = helm_python.lint(str(CHART))

    assert result["errors"] == []
    assert [each["error"] for each in result["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("wrong", [
    {"image": {"repository": ""}},
    {"images": ["relative"]},
    {"sockets": {"grup": 36}},
    {"extraArgs": ["log.format=json"]},
    {"monitoring": {"interval": "15"}},
    {"admin": {"enabled": True}},
])  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """A slip in a value is told before anything is installed."""
    with pytest.raises(helm_python.HelmError):
        rendered(wrong)


def test_the_rules_of_the_cluster_are_those_of_the_files(tmp_path: Path) -> None:
    """Written anew they are the same, and promtool takes them."""
    subprocess.run([KUBERNETES / "rules", tmp_path / "made.yaml"], check=True)
    shipped = KUBERNETES / "monitoring" / "prometheusrule.yaml"
    spec = yaml.safe_load(shipped.read_text())["spec"]
    files = [ROOT / "deploy" / "prometheus" / name for name in ("rules.yml", "alerts.yml")]
    (tmp_path / "spec.yml").write_text(yaml.safe_dump(spec))

    assert shipped.read_text() == (tmp_path / "made.yaml").read_text()
    assert spec["groups"] == [
        group for file in files for group in yaml.safe_load(file.read_text())["groups"]
    ]
    subprocess.run(
        ["promtool", "check", "rules", tmp_path / "spec.yml"], check=True, capture_output=True
    )


@pytest.mark.parametrize("name", SETS)
def test_a_pod_has_no_right_but_its_folders(sets: dict[str, Objects], name: str) -> None:
    """Not root, nothing to write to but what the admin API needs, no token; the user of the image."""
    pod = sets[name]["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]

    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert not pod.get("hostNetwork")
    assert writable in ([], ["/var/lib/qemu-block-exporter"])


@pytest.mark.parametrize("name", SETS)
def test_every_flag_in_a_manifest_is_one(sets: dict[str, Objects], name: str) -> None:
    """The program takes them all."""
    (container,) = sets[name]["DaemonSet"]["spec"]["template"]["spec"]["containers"]

    assert parser().parse_args(container["args"]).web_listen_address == ["0.0.0.0:9709"]


def test_the_configuration_of_the_admin_example_is_one() -> None:
    """It grants what it says it grants."""
    config = load(str(KUBERNETES / "admin" / "config.yml"), Settings(), ())

    assert [grant.users for grant in config.admin.grants] == [("oncall",)]


def test_prometheus_sees_a_job_that_the_rules_look_for(sets: dict[str, Objects]) -> None:
    """Its name is that of a label of the pods; and what it selects are the pods, at their port."""
    pod, monitor = (
        sets["monitoring"]["DaemonSet"]["spec"]["template"],
        sets["monitoring"]["PodMonitor"]["spec"],
    )
    labels = pod["metadata"]["labels"]

    assert labels[monitor["jobLabel"]].startswith("qemu-block")
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert (
        monitor["podMetricsEndpoints"][0]["port"]
        == pod["spec"]["containers"][0]["ports"][0]["name"]
    )


@pytest.mark.parametrize("name", ["monitoring", "admin", "helm", "helm, changed"])
def test_a_pod_that_is_replaced_goes_on_with_the_series_of_the_one_before(
    sets: dict[str, Objects], name: str
) -> None:
    """The operator names the pod in a label, before these rules: alerts would begin anew with each rollout."""
    (endpoint,) = sets[name]["PodMonitor"]["spec"]["podMetricsEndpoints"]
    node, *_ = labels = [
        relabelled(endpoint["relabelings"], pod) for pod in ("exporter-abcde", "exporter-fghij")
    ]

    assert labels == [node, node]
    assert node == {
        "job": NAME,
        "namespace": NAME,
        "container": "exporter",
        "endpoint": "metrics",
        "instance": "node1",
    }


def relabelled(rules: list[dict[str, Any]], pod: str) -> dict[str, str]:
    """Return the labels of a target, from those that the operator gives it."""
    labels = {"job": NAME, "namespace": NAME, "container": "exporter", "endpoint": "metrics", "pod": pod,
              "instance": "10.0.0.1:9709", "__meta_kubernetes_pod_node_name": "node1"}  # fmt: skip
    for rule in rules:
        if rule.get("action", "replace") == "labeldrop":
            labels = {
                key: value for key, value in labels.items() if not re.fullmatch(rule["regex"], key)
            }
        else:
            assert rule.keys() == {"sourceLabels", "targetLabel"}
            labels[rule["targetLabel"]] = ";".join(labels[key] for key in rule["sourceLabels"])
    return {key: value for key, value in labels.items() if not key.startswith("__")}


def test_the_version_is_that_of_the_program(sets: dict[str, Objects]) -> None:
    """In the image's tag, by kustomize and by Helm."""
    for name in ("monitoring", "helm"):
        (container,) = sets[name]["DaemonSet"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"{NAME}:{__version__}"
