"""Renders the overlays of ``k8s/`` and validates what comes out: ``python -m deploy.manifests`` (``make k8s``).

``kubectl kustomize`` renders, without a cluster; ``kubernetes-validate`` compares every field with the schemas of
Kubernetes, strictly: one it does not know is an error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate
import yaml

Manifest: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[1] / "k8s"
OVERLAYS = tuple(sorted(path.name for path in (ROOT / "overlays").iterdir()))
OLDEST_KUBECTL = (1, 27)  # the first whose kustomize (5) knows all that is used here
OLDEST_CLUSTER = "1.30"  # the first with lifecycle.preStop.sleep


class ManifestError(Exception):
    """Why there is nothing to look at, in one line."""


def kubectl() -> str:
    """The kubectl on PATH. Raises ManifestError if there is none that is new enough."""
    found, oldest = shutil.which("kubectl"), "{}.{}".format(*OLDEST_KUBECTL)
    if found is None:
        raise ManifestError(f"kubectl {oldest} or newer is needed to render k8s/, and there is none on PATH")
    said = subprocess.run(
        [found, "version", "--client", "--output=json"], capture_output=True, text=True, check=False
    )
    try:
        client = json.loads(said.stdout)["clientVersion"]
        version = int(client["major"]), int(client["minor"].rstrip("+"))
    except (ValueError, KeyError) as error:
        raise ManifestError(f"{found} does not say which version it is") from error
    if version < OLDEST_KUBECTL:
        raise ManifestError(
            f"kubectl {oldest} or newer is needed to render k8s/, and {found} is {client['gitVersion']}"
        )
    return found


def render(overlay: str) -> list[Manifest]:
    """What ``kubectl apply -k k8s/overlays/<overlay>`` would send. Raises ManifestError."""
    command = [kubectl(), "kustomize", str(ROOT / "overlays" / overlay)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode != 0 or said.stderr:  # kustomize warns of fields that are about to go
        raise ManifestError(f"k8s/overlays/{overlay} cannot be rendered: {said.stderr.strip()}")
    return list(yaml.safe_load_all(said.stdout))


def validate(manifest: Manifest) -> None:
    """Against the oldest and the newest Kubernetes there is a schema of. Raises ManifestError."""
    for version in (OLDEST_CLUSTER, str(kubernetes_validate.latest_version())):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            name = f"{manifest['kind']} {manifest['metadata']['name']}"
            raise ManifestError(f"{name} is not valid for Kubernetes {version}: {error}") from error


def main() -> None:
    """Says of each overlay that it is valid, or exits with the first error."""
    try:
        for overlay in OVERLAYS:
            manifests = render(overlay)
            for manifest in manifests:
                validate(manifest)
            versions = f"{OLDEST_CLUSTER} to {kubernetes_validate.latest_version()}"
            print(f"k8s/overlays/{overlay}: {len(manifests)} resources, valid for Kubernetes {versions}")
    except ManifestError as error:
        sys.exit(f"make k8s: {error}")


if __name__ == "__main__":
    main()
