"""Builds the native module prophet_ext with CMake and places it, with its types, at top level.

Where nvcc is found (CUDA_HOME, CUDA_PATH, /usr/local/cuda), libprophet_cuda.so is built too and lies
beside it. Metadata lives in pyproject.toml. `CMAKE_ARGS` in the environment is handed to CMake,
for example `CMAKE_ARGS="-DPROPHET_CUDA=OFF" pip install .`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILER = "a C++20 compiler (GCC >= 11 or Clang >= 14; Debian: apt-get install g++; choose with CXX=...)"


class CMakeBuild(build_ext):
    """One CMake configure and build; the result is installed beside the Python package."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "--fresh",  # the last build's tools lived in an environment that is gone
            "-S", str(ROOT),
            "-B", str(build),
            "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DPROPHET_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        print(f"prophet-moe: building the native module; this needs {COMPILER}", flush=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        try:
            subprocess.run(configure, check=True)
            subprocess.run(
                ["cmake", "--build", str(build), "--target", "prophet_package", "--parallel", jobs],
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"prophet-moe: the native module did not build; the reason is above. It needs {COMPILER}."
            ) from error
        if not self.inplace:
            stubs = target.parent / f"{ext.name}-stubs"
            stubs.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / "python" / f"{ext.name}.pyi", stubs / "__init__.pyi")


setup(ext_modules=[Extension("prophet_ext", sources=[])], cmdclass={"build_ext": CMakeBuild})
