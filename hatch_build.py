"""Compiles modules of esp into the wheel, by mypyc, where the environment has ESP_COMPILE=1; see docs/compiled.md.

hatchling runs this whenever a wheel is built. Nothing is written into the checkout, whose modules stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SETUP = """
import json, os
from multiprocessing.pool import ThreadPool
from setuptools import setup
from setuptools.command.build_ext import build_ext
from mypyc.build import mypycify

class AllCores(build_ext):
    def build_extensions(self):
        cc = self.compiler

        def compile_all(sources, output_dir=None, macros=None, include_dirs=None, debug=0,
                        extra_preargs=None, extra_postargs=None, depends=None):
            made = cc._setup_compile(output_dir, macros, include_dirs, sources, depends, extra_postargs)
            _, objects, after, preprocessor, build = made
            before = cc._get_cc_args(preprocessor, debug, extra_preargs)
            with ThreadPool() as pool:
                pool.map(lambda one: cc._compile(one, *build[one], before, after, preprocessor), objects, 1)
            return objects

        if cc.compiler_type == "unix":
            cc.compile = compile_all
        super().build_extensions()

setup(name="esp", packages=[], cmdclass={"build_ext": AllCores}, ext_modules=mypycify(
    json.loads(os.environ["ESP_COMPILED_PATHS"]), group_name="esp", target_dir="c", multi_file=True,
    opt_level=os.environ.get("MYPYC_OPT_LEVEL", "2"), debug_level=os.environ.get("MYPYC_DEBUG_LEVEL", "0"),
))
"""
"""The build in a folder of its own; setuptools by itself compiles one file at a time."""


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg]
    """The hook. The lists of modules are in pyproject.toml, [tool.hatch.build.hooks.custom]."""

    def dependencies(self) -> list[str]:
        """What compiling needs: mypy reads the types of all that esp imports."""
        return [*self.config["needs"], *self.metadata.core.dependencies] if is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the compiled modules to a wheel that is asked for; an editable install stays interpreted."""
        if self.target_name != "wheel" or version == "editable" or not is_wanted():
            return
        self._folder = tempfile.mkdtemp(prefix="esp-compiled-")
        root, folder = Path(self.root), Path(self._folder)
        for built in compiled(root, self.config["compiled"], folder):
            build_data["force_include"][str(built)] = str(built.relative_to(folder / "built"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what the wheel has by now."""
        if folder := getattr(self, "_folder", None):
            shutil.rmtree(folder)


def is_wanted() -> bool:
    """Whether the one who builds has asked for compiled modules."""
    return os.environ.get("ESP_COMPILE", "") not in ("", "0")


def compiled(root: Path, modules: list[str], folder: Path) -> list[Path]:
    """Compiles the modules in `folder`; the files that go into the wheel, which are below its folder `built`."""
    shutil.copytree(root / "esp", folder / "esp", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(root / "pyproject.toml", folder)
    (folder / "setup.py").write_text(SETUP)
    shutil.move(folder / "pyproject.toml", folder / "mypy.toml")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built", "--build-temp", "objects"]
    environ = os.environ | {"ESP_COMPILED_PATHS": json.dumps(["--config-file", "mypy.toml", *modules])}
    subprocess.run(command, cwd=folder, env=environ, check=True)  # noqa: S603
    return sorted(path for path in (folder / "built").rglob("*") if path.is_file())
