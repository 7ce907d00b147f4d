"""What builds and runs images: Docker where one answers, otherwise buildah without a daemon, as root.

A process runs as ``k8s/`` has it run: as the image's user, on a read-only root, with no capability and no way to
get one, and a /tmp of its own. It shares this machine's network.

buildah builds on a Debian of its own, made by mmdebstrap from what apt on this machine knows, and isolates by
chroot alone; so do the processes here. Everything it stores goes with its directory.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
SUITE = "bookworm"
_PIP_SETTINGS = ("index-url", "extra-index-url", "proxy", "retries", "timeout", "trusted-host")


class ImageError(Exception):
    """Why an image cannot be built or run, in a line; what the tool said comes before."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a process of an image is to run: ``mounts`` by their path inside, ``command`` instead of its own."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    command: Sequence[str] = ()


class Engine(Protocol):
    """Builds the targets of the Dockerfile and runs them."""

    name: str

    def build(self, target: str) -> str:
        """Builds it; answers its size, for people. Raises ImageError."""

    def start(self, target: str, run: Run, output: int) -> subprocess.Popen[bytes]:
        """The process, which signals reach and whose exit status is that inside. Raises ImageError."""


@contextmanager
def engine() -> Iterator[Engine]:
    """The engine of this machine; what it stored for itself is removed after the block. Raises ImageError."""
    if shutil.which("docker") and _succeeds("docker", "info"):
        with tempfile.TemporaryDirectory(prefix="twotruths-images-") as folder:
            yield _Docker(_secrets(Path(folder)))
        return
    for tool in ("buildah", "mmdebstrap"):
        if shutil.which(tool) is None:
            raise ImageError(f"neither a Docker that answers nor {tool}: apt install buildah mmdebstrap")
    if os.geteuid() != 0:
        raise ImageError("without Docker images are built and run as root")
    with tempfile.TemporaryDirectory(prefix="twotruths-images-") as folder:
        buildah = _Buildah(Path(folder), _secrets(Path(folder)))
        try:
            buildah.make_base()
            yield buildah
        finally:
            buildah.close()


class _Docker:
    name = "docker"

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = secrets

    def build(self, target: str) -> str:
        _run("docker", "build", "--quiet", *self._secrets, "--target", target, "--tag", _tag(target), str(ROOT))
        return _run("docker", "images", "--format", "{{.Size}}", _tag(target)).strip()

    def start(self, target: str, run: Run, output: int) -> subprocess.Popen[bytes]:
        command = ["docker", "run", "--rm", "--read-only", "--network=host", "--tmpfs=/tmp"]
        command += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
        command += [f"--env={name}={value}" for name, value in run.environment.items()]
        command += [f"--volume={source}:{path}" for path, source in run.mounts.items()]
        if run.command:
            command.append(f"--entrypoint={run.command[0]}")
        return subprocess.Popen([*command, _tag(target), *run.command[1:]], stdout=output, stderr=output)


class _Buildah:
    name = "buildah"

    def __init__(self, folder: Path, secrets: Sequence[str]) -> None:
        self._folder = folder
        self._secrets = secrets
        stored = [f"--root={folder / 'storage'}", f"--runroot={folder / 'run'}"]
        # vfs works everywhere, and copies everything that an image is made from; overlay copies nothing.
        overlay = _succeeds("buildah", *stored, "--storage-driver=overlay", "info")
        self._buildah = ("buildah", *stored, f"--storage-driver={'overlay' if overlay else 'vfs'}")
        self._roots: dict[str, Path] = {}

    def make_base(self) -> None:
        """A Debian with Python and little else."""
        base = self._folder / "base"
        base.mkdir()
        paths = ("doc", "man", "locale")
        options = ["force-unsafe-io", *(f"path-exclude=/usr/share/{name}/*" for name in paths)]
        _run(
            *(
                "mmdebstrap",
                "--quiet",
                "--variant=essential",
                "--include=python3,python3-venv,libstdc++6,ca-certificates",
            ),
            *(f"--dpkgopt={option}" for option in options),
            *(SUITE, str(base / "base.tar")),
        )
        (base / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        _run(*self._buildah, "build", "--isolation=chroot", "--quiet", "--tag=base:local", str(base))
        (base / "base.tar").unlink()

    def build(self, target: str) -> str:
        _run(
            *(*self._buildah, "build", "--isolation=chroot", "--quiet", "--layers", *self._secrets),
            *("--build-arg=BASE=localhost/base:local", f"--target={target}", f"--tag={_tag(target)}", str(ROOT)),
        )
        return _run(*self._buildah, "images", "--format", "{{.Size}}", f"localhost/{_tag(target)}").strip()

    def start(self, target: str, run: Run, output: int) -> subprocess.Popen[bytes]:
        if target not in self._roots:
            container = _run(*self._buildah, "from", f"localhost/{_tag(target)}").strip()
            self._roots[target] = Path(_run(*self._buildah, "mount", container).strip())
        root = self._roots[target]
        config = json.loads(_run(*self._buildah, "inspect", "--type=image", f"localhost/{_tag(target)}"))
        image = config["OCIv1"]["config"]
        variables = [*image["Env"], *(f"{name}={value}" for name, value in run.environment.items())]
        command = run.command or image["Entrypoint"]
        script = ["set -e", _bind(root, root)]
        for path, source in {"/dev": Path("/dev"), **run.mounts}.items():
            script += [f"mkdir -p {root}{path}", _bind(source, Path(f"{root}{path}"))]
        script += [f"cd {root}", "mount -t proc proc proc", "mount -t tmpfs -o mode=1777 tmpfs tmp"]
        script += [f"mount -o remount,bind,ro {root}"]
        # What chroot needs, and loses when it becomes the user.
        drop = "setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid"
        user = image["User"]
        become = f"chroot --userspec={user} --groups={user.partition(':')[2]} {root} /usr/bin/env -i"
        script += [f"exec {drop} {become} --chdir={image['WorkingDir']} {shlex.join([*variables, *command])}"]
        own = ["unshare", "--mount", "--propagation=private", "sh", "-c", "\n".join(script)]
        return subprocess.Popen(own, stdout=output, stderr=output)

    def close(self) -> None:
        """Lets go of what is mounted; the directory can be removed then."""
        for what in ("umount", "rm"):
            _succeeds(*self._buildah, what, "--all")
        if (self._folder / "storage" / "overlay").exists():  # a mount of its own
            _succeeds("umount", str(self._folder / "storage" / "overlay"))


def _tag(target: str) -> str:
    return f"twotruths-{target}:built"


def _bind(source: Path, target: Path) -> str:
    return f"mount --rbind {shlex.quote(str(source))} {shlex.quote(str(target))}"


def _secrets(folder: Path) -> list[str]:
    """The build's options for how this machine's pip reaches its index. They stay out of the image."""
    said = _run(sys.executable, "-m", "pip", "config", "list")
    known: dict[str, str] = {}
    for line in said.splitlines():  # global.index-url='…'; of several sources of a setting the last counts
        name, _, value = line.partition("=")
        known[name.rpartition(".")[2]] = value.strip("'")
    lines = ["[global]"]
    for name in _PIP_SETTINGS:
        if name in known and "file:" not in known[name]:  # a folder of this machine is none of the image's
            lines.append(f"{name} = {known[name]}")
    secrets = {"pip": folder / "pip.conf"}
    if "cert" in known:
        secrets["ca"] = Path(known["cert"])
        lines.append("cert = /run/secrets/ca")
    secrets["pip"].write_text("\n".join(lines) + "\n")
    return [f"--secret=id={name},src={path}" for name, path in secrets.items()]


def _run(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        print(said.stdout + said.stderr, file=sys.stderr)
        raise ImageError(f"{shlex.join(command[:1])} failed: {' '.join(said.stderr.split())[-300:]}")
    return said.stdout


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
