"""Build hook: generates the Python code of the protos into ``gen/`` (never committed).

``gen/`` is on the path of an editable install and is packed into a wheel. ``python hatch_build.py``
does the same by hand (``make protos``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> Path:
    """Compile every proto below ``root/protos`` that no installed package ships; answers the output folder."""
    from importlib.resources import files

    from grpc_tools import protoc

    source, target = root / "protos", root / "gen"
    staging = root / "gen.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    # google/api is shipped as Python code by googleapis-common-protos; its protos here are for buf.
    protos = sorted(p for p in source.rglob("*.proto") if p.relative_to(source).parts[0] != "google")
    plugins = {name: _beside_python(f"protoc-gen-{name}") for name in ("mypy", "mypy_grpc")}
    arguments = [
        "protoc",
        f"-I{source}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={path}" for name, path in plugins.items()),
        *(f"--{out}_out={staging}" for out in ("python", "grpc_python", "mypy", "mypy_grpc")),
        # With the comments, which generated code does not carry: the gateway's OpenAPI document shows them.
        "--include_source_info",
        f"--descriptor_set_out={staging / 'descriptors.binpb'}",
        *(str(p) for p in protos),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; its message is above")
    (staging / "descriptors.binpb").rename(staging / "twotruths" / "descriptors.binpb")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return target


def _beside_python(program: str) -> str:
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise RuntimeError(f"{program} is not installed: it comes with mypy-protobuf")
    return found


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # any builder's configuration
    """Runs :func:`generate` before hatchling collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        gen = generate(Path(self.root))
        if version != "editable":
            build_data["force_include"].update({str(p): p.name for p in gen.iterdir()})


if __name__ == "__main__":
    generate(Path(__file__).parent)
