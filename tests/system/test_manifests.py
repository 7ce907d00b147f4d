"""What Kubernetes is told about the mesh (``k8s/``), as far as no schema says whether it is right."""

from __future__ import annotations

import functools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.manifests import OVERLAYS, Manifest, render, validate
from mesh.nats import find_server
from services.challenge.config import ChallengeSettings
from services.common.settings import CommonSettings
from services.gateway.config import GatewaySettings
from services.merge.config import MergeSettings
from services.upload.config import UploadSettings

REPOSITORY = Path(__file__).parents[2]
SETTINGS: dict[str, type[CommonSettings]] = {
    "upload": UploadSettings,
    "merge": MergeSettings,
    "worker": MergeSettings,
    "challenge": ChallengeSettings,
    "gateway": GatewaySettings,
}
LISTENS = {"upload": "upload_listen", "merge": "merge_listen", "challenge": "challenge_listen"}
# What overlays name and do not make: docs/deploy.md says what is in them.
PROMISED = {
    "local": {"ConfigMap key-sets", "Secret signing-keys"},
    "production": {
        "ConfigMap key-sets",
        *(f"Secret {name}" for name in ("signing-keys", "nats", "database", "s3", "mesh-tls")),
    },
}
MEBIBYTES = {"Mi": 1, "Gi": 1024}


@dataclass(frozen=True)
class Overlay:
    """What one renders to."""

    name: str
    manifests: list[Manifest]

    def of(self, *kinds: str) -> dict[str, Manifest]:
        """Those of these kinds, by name."""
        return {m["metadata"]["name"]: m for m in self.manifests if m["kind"] in kinds}

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Name and pod specification of whatever runs."""
        for name, manifest in self.of("Deployment", "StatefulSet").items():
            yield name, manifest["spec"]["template"]["spec"]

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """ "<pod>/<container>" and the container, those that run before it included."""
        for name, pod in self.pods():
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                yield f"{name}/{container['name']}", container

    def container(self, pod: str) -> Manifest:
        """The container of a pod that has one."""
        only: Manifest
        (only,) = dict(self.pods())[pod]["containers"]
        return only

    def environment(self, container: Manifest) -> dict[str, str]:
        """Its variables; of a secret that is not here, its name."""
        given: dict[str, str] = {}
        for source in container.get("envFrom", []):
            given |= self.of("ConfigMap")[source["configMapRef"]["name"]]["data"]
        for variable in container.get("env", []):
            given[variable["name"]] = variable.get("value") or str(variable["valueFrom"])
        return given

    def settings(self, monkeypatch: pytest.MonkeyPatch, pod: str) -> CommonSettings:
        """What the process makes of its environment."""
        with monkeypatch.context() as patch:
            for name, value in self.environment(self.container(pod)).items():
                patch.setenv(name, value)
            return SETTINGS[pod]()


@functools.cache
def _overlay(name: str) -> Overlay:
    return Overlay(name, render(name))


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Overlay:
    """Each of them."""
    return _overlay(request.param)


def test_the_schemas_know_every_field(overlay: Overlay) -> None:
    for manifest in overlay.manifests:
        validate(manifest)


def test_all_five_processes_are_deployed(overlay: Overlay) -> None:
    assert set(overlay.of("Deployment")) == set(SETTINGS)
    for name in SETTINGS:
        assert overlay.container(name)["image"].startswith(f"twotruths-{name}:")


def test_every_container_is_bounded_and_probed(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        for bound in ("requests", "limits"):
            assert set(container["resources"][bound]) == {"cpu", "memory"}, name
    for name, pod in overlay.pods():
        for container in pod["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


def test_every_container_is_restricted(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
    for name, pod in overlay.pods():
        context = pod["securityContext"]
        assert context["runAsNonRoot"], name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name


def test_every_variable_is_a_setting_of_its_process(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        pod = name.partition("/")[0]
        if pod in SETTINGS:
            known = {f"TWOTRUTHS_{field.upper()}" for field in SETTINGS[pod].model_fields}
            assert set(overlay.environment(container)) <= known, name


def test_ports_agree(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    services = overlay.of("Service")
    for name in SETTINGS:
        settings, container = overlay.settings(monkeypatch, name), overlay.container(name)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert len(set(ports.values())) == len(ports), name
        assert _port(settings.metrics_listen) == ports["metrics"], name
        annotations = overlay.of("Deployment")[name]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(ports["metrics"]), name
        if isinstance(settings, GatewaySettings):
            assert _port(settings.gateway_listen) == ports["http"]
            assert services[name]["spec"]["ports"][0]["targetPort"] == "http"
        else:
            assert _port(settings.admin_listen) == ports["admin"], name
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe].get("grpc") or container[probe]["httpGet"]
            assert asked["port"] in (ports.get("admin"), "http"), name
        if name in LISTENS:
            assert _port(getattr(settings, LISTENS[name])) == ports["grpc"], name
            (port,) = services[name]["spec"]["ports"]
            assert port["targetPort"] == "grpc", name
            # The address of a headless Service is that of a pod: there is nothing that would change a port.
            assert services[name]["spec"]["clusterIP"] == "None", name
            assert port["port"] == ports["grpc"], name
            assert getattr(settings, f"{name}_target") == f"dns:///{name}:{port['port']}"
    for name, service in services.items():
        pod = overlay.container(name)
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {p["name"] for p in pod["ports"]}, name


def test_selectors_find_their_pods_alone(overlay: Overlay) -> None:
    labels = {
        name: manifest["spec"]["template"]["metadata"]["labels"]
        for name, manifest in overlay.of("Deployment", "StatefulSet").items()
    }
    for manifest in overlay.manifests:
        selector = manifest.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector).items()
            found = [name for name, has in labels.items() if wanted <= has.items()]
            assert found == [manifest["metadata"]["name"]], manifest["kind"]


def test_images_are_of_this_version_and_none_is_whatever_is_latest(overlay: Overlay) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name, container in overlay.containers():
        image, _, tag = container["image"].partition(":")
        assert tag, name
        assert "latest" not in tag, name
        assert not image.startswith("twotruths-") or tag == project["version"], name


def test_a_pod_outlives_the_longest_stream(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = overlay.settings(monkeypatch, "gateway")
    assert isinstance(gateway, GatewaySettings)
    longest = max(gateway.gateway_chunk_timeout_seconds, gateway.gateway_append_timeout_seconds)
    for name, pod in overlay.pods():
        if name in SETTINGS:
            settings = overlay.settings(monkeypatch, name)
            before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert settings.drain_grace_seconds > longest, name
            needs = before + settings.drain_wait_seconds + settings.drain_grace_seconds
            assert pod["terminationGracePeriodSeconds"] > needs, name


def test_no_clip_can_use_up_a_workers_memory(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = overlay.settings(monkeypatch, "worker")
    assert isinstance(settings, MergeSettings)
    children = settings.worker_jobs + 1 + settings.worker_probes  # one more of low priority
    number, unit = re.fullmatch(
        r"(\d+)(\w+)", overlay.container("worker")["resources"]["limits"]["memory"]
    ).groups()  # type: ignore[union-attr]
    assert int(number) * MEBIBYTES[unit] >= children * settings.job_memory_mib + 512


def test_a_worker_holds_no_key(overlay: Overlay) -> None:
    mounted = {volume["name"] for volume in dict(overlay.pods())["worker"]["volumes"]}
    assert not mounted & {"key-sets", "signing-keys", "tls"}


def test_what_is_named_is_there_or_promised(overlay: Overlay) -> None:
    made = {f"{m['kind']} {m['metadata']['name']}" for m in overlay.manifests}
    named = set(_references([pod for _, pod in overlay.pods()]))
    assert named - made == PROMISED[overlay.name]
    guide = (REPOSITORY / "docs" / "deploy.md").read_text()
    for name in named - made:
        wanted = name.replace("Secret ", "secret generic ").replace("ConfigMap ", "configmap ")
        assert f"create {wanted} " in guide


def test_the_broker_is_three_servers_that_lose_nothing(overlay: Overlay, tmp_path: Path) -> None:
    broker = overlay.of("StatefulSet")["nats"]["spec"]
    names = [f"nats-{number}.nats" for number in range(broker["replicas"])]
    assert len(names) == 3
    assert overlay.of("Service")[broker["serviceName"]]["spec"]["clusterIP"] == "None"
    assert overlay.of("PodDisruptionBudget")["nats"]["spec"]["maxUnavailable"] == 1
    (mounted,) = [v["configMap"]["name"] for v in broker["template"]["spec"]["volumes"] if "configMap" in v]
    config = overlay.of("ConfigMap")[mounted]["data"]["nats.conf"]
    assert re.search(r"^ +sync_interval: always$", config, re.MULTILINE)
    assert re.findall(r"nats-route://([^:\"]+):6222", config) == names
    for name in ("upload", "merge", "worker"):
        assert overlay.environment(overlay.container(name))["TWOTRUTHS_NATS_REPLICAS"] == str(len(names))
    (tmp_path / "nats.conf").write_text(config)
    (tmp_path / "auth").mkdir()
    (tmp_path / "auth" / "auth.conf").write_text("authorization { user: mesh, password: local }")
    command = [str(find_server()), "-t", "-c", str(tmp_path / "nats.conf")]
    said = subprocess.run(command, env={"POD_NAME": "nats-0"}, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def _port(listen: str) -> int:
    return int(listen.rpartition(":")[2])


def _references(node: object) -> Iterator[str]:
    """ "Secret <name>" and "ConfigMap <name>" wherever a pod names one."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretKeyRef", "secretRef"):
                yield f"Secret {value['name']}"
            elif key == "secret":
                yield f"Secret {value['secretName']}"
            elif key in ("configMap", "configMapRef", "configMapKeyRef"):
                yield f"ConfigMap {value['name']}"
            else:
                yield from _references(value)
