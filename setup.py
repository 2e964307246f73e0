"""Builds what pyproject.toml cannot describe: gRPC stubs, the Cython and cffi modules and the BPF objects.

The top-level folders install under one import root, `kernelet`, so that site-packages never holds a package
called `core` or `proto`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
TOPS = ("core", "dataplane", "ext", "agents", "proto")


def packages() -> dict[str, str]:
    """Import name -> folder, for every package of the top-level folders."""
    found = {}
    for top in TOPS:
        found[f"kernelet.{top}"] = top
        for name in find_packages(top):
            found[f"kernelet.{top}.{name}"] = f"{top}/{name.replace('.', '/')}"
    return found


class BuildProto(Command):
    """Compiles proto/*.proto into modules beside them, with type stubs."""

    description = "generate gRPC modules from proto/*.proto"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Nothing to configure."""

    def finalize_options(self) -> None:
        """Nothing to configure."""

    def run(self) -> None:
        protos = sorted((ROOT / "proto").glob("*.proto"))
        newest = max(path.stat().st_mtime for path in protos)
        stubs = [path.with_name(f"{path.stem}_pb2_grpc.py") for path in protos]
        if all(stub.exists() and stub.stat().st_mtime >= newest for stub in stubs):
            return
        out = ROOT / "build" / "proto"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        plugins = [
            f"--plugin={name}={shutil.which(name, path=search)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ]
        # The virtual path makes the generated modules import each other as kernelet.proto.*.
        command = [sys.executable, "-m", "grpc_tools.protoc", *plugins, f"-Ikernelet/proto={ROOT / 'proto'}"]
        command += [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
        command += [f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")]
        subprocess.run([*command, *(f"kernelet/proto/{path.name}" for path in protos)], check=True)
        for path in (out / "kernelet" / "proto").iterdir():
            shutil.copy(path, ROOT / "proto" / path.name)


class BuildBpf(Command):
    """Compiles ext/bpf/*.bpf.c with clang into CO-RE objects beside their sources."""

    description = "compile BPF objects"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Nothing to configure."""

    def finalize_options(self) -> None:
        """Nothing to configure."""

    def run(self) -> None:
        folder = ROOT / "ext" / "bpf"
        newest_header = max((path.stat().st_mtime for path in folder.glob("*.h")), default=0.0)
        for source in sorted(folder.glob("*.bpf.c")):
            target = source.with_suffix(".o")
            if target.exists() and target.stat().st_mtime >= max(source.stat().st_mtime, newest_header):
                continue
            subprocess.run(
                ["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu",
                 f"-I{folder}", "-c", str(source), "-o", str(target)],
                check=True,
            )  # fmt: skip


class BuildAll(build_py):
    """build_py after the generated modules exist."""

    def run(self) -> None:
        self.run_command("build_proto")
        self.run_command("build_bpf")
        super().run()


def extensions() -> list[Extension]:
    """The Cython modules of ext/; cythonize is imported late, so that `setup.py build_proto` needs no Cython."""
    from Cython.Build import cythonize

    sources = sorted(ROOT.glob("ext/*/*.pyx"))
    modules = [
        Extension(
            f"kernelet.ext.{path.parent.name}.{path.stem}", [str(path.relative_to(ROOT))], extra_compile_args=["-O2"]
        )
        for path in sources
    ]
    return cythonize(modules, language_level=3) if modules else []


PACKAGES = packages()

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={name: ["py.typed", "*.proto", "*.pyi", "*.bpf.o", "pause/*.c", "app/*"] for name in PACKAGES},
    ext_modules=extensions(),
    cffi_modules=[f"{path.relative_to(ROOT)}:ffibuilder" for path in sorted(ROOT.glob("ext/*/build_*.py"))],
    cmdclass={"build_py": BuildAll, "build_proto": BuildProto, "build_bpf": BuildBpf},
)
