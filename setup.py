"""Packaging: three rooms of the checkout install under one import name, ``fastseg``.

``kernels`` and ``pipelines`` are names of other people's packages, so the folders stay where they
are and are mapped to ``fastseg.kernels`` and ``fastseg.pipelines``.
"""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
RECIPE: dict[str, Any] = runpy.run_path(str(HERE / "pipelines" / "native" / "recipe.py"))
ROOMS = {"fastseg": "fastseg", "fastseg.kernels": "kernels", "fastseg.pipelines": "pipelines"}
DALI = 'nvidia-dali-cuda130>=2.4,<3; sys_platform == "linux"'
TRITON = 'triton>=3.6; sys_platform == "linux"'
PLOT = "matplotlib>=3.8"
IMAGECODECS = "imagecodecs>=2025.3.30"
EVENTS = "h5py>=3.10"
TRANSFORMERS = "transformers>=5"
PEFT = "peft>=0.17"
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]


class BuildLoops(build_ext):
    """Compiles the C loops for every instruction set of the machine.

    They are plain shared libraries that any Python opens. Where they cannot be compiled the wheel
    is made without them, and fastseg compiles them at the first use.
    """

    def initialize_options(self) -> None:
        """Begin with no libraries."""
        super().initialize_options()
        self.written: list[str] = []

    def run(self) -> None:
        """Compile, and warn of what does not; an editable installation has no need of it."""
        if self.inplace or self.editable_mode or sys.platform != "linux":
            return
        compiler = shlex.split(os.environ.get("CC") or shutil.which("cc") or "gcc")
        folder = Path(self.build_lib, "fastseg", "pipelines", "native")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.so"):
            old.unlink()
        for march in RECIPE["INSTRUCTION_SETS"].get(RECIPE["machine"](), ()):
            target = folder / RECIPE["packaged_name"](march)
            try:
                RECIPE["compile_library"](compiler, march, target)
            except (OSError, subprocess.SubprocessError) as error:
                reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
                self.warn(f"no C loops for {march}, fastseg compiles them at first use: {reason}")
                target.unlink(missing_ok=True)
            else:
                self.written.append(str(target))

    def get_outputs(self) -> list[str]:
        """The libraries that were compiled."""
        return self.written


class Wheel(bdist_wheel):
    """Names the platform if there are libraries in the wheel; the Python never matters."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tag of the wheel, after everything in it was built."""
        self.root_is_pure = not self.get_finalized_command("build_ext").written
        return "py3", "none", super().get_tag()[2]


setup(
    name="fastseg",
    version="0.2.0",
    description="Fast, dependable training of multi-modal segmenters that survive sensor failure",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[
        f"{name}.{inner}".rstrip(".")
        for name, folder in ROOMS.items()
        for inner in ("", *find_packages(str(HERE / folder)))
    ],
    package_dir=ROOMS,
    package_data={
        "": ["*.c"],
        "fastseg": ["py.typed"],
        "fastseg.report.page": ["templates/*"],
    },
    ext_modules=[Extension("fastseg.pipelines.native.pixels", ["pipelines/native/pixels.c"])],
    cmdclass={"build_ext": BuildLoops, "bdist_wheel": Wheel},
    # apex is not listed on purpose: the name on PyPI belongs to another project
    install_requires=[
        "torch>=2.10",
        "numpy>=1.26",
        "pillow>=10.3",
        "tyro>=1.0",
        "safetensors>=0.5",
        "tqdm>=4.66",
        "tomli>=2; python_version < '3.11'",
        "pyyaml>=6",
        "jinja2>=3.1",
        PLOT,
    ],
    extras_require={
        "dali": [DALI],
        "triton": [TRITON],
        # decodes PNG files in less time than Pillow
        "fast-png": [IMAGECODECS],
        # event files of MUSES; their compression needs the filters of hdf5plugin
        "muses": [EVENTS, "hdf5plugin>=4.4"],
        # frozen CLIP models, whose embeddings a method may learn from
        "vision-language": [TRANSFORMERS],
        # foundation encoders from a local folder, and their adapters in files of peft
        "foundation": [TRANSFORMERS, PEFT],
        # ONNX files of python -m fastseg.export
        "export": ONNX,
        "test": [
            DALI,
            EVENTS,
            IMAGECODECS,
            *ONNX,
            PEFT,
            TRANSFORMERS,
            TRITON,
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "torchmetrics>=1.4",
        ],
        # the documentation site: mkdocs build --strict
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10"],
        "lint": ["ruff==0.17.5", "mypy>=1.15", "types-tqdm", "uv>=0.9"],
    },
    entry_points={
        "console_scripts": [
            "fastseg = fastseg.__main__:main",
            "fastseg-train = fastseg.train:main",
            "fastseg-evaluate = fastseg.evaluate:main",
            "fastseg-predict = fastseg.predict:main",
            "fastseg-export = fastseg.export:main",
            "fastseg-report = fastseg.report.__main__:main",
            "fastseg-data = fastseg.data:main",
            "fastseg-models = fastseg.models.__main__:main",
            "fastseg-doctor = fastseg.doctor:main",
        ]
    },
)
