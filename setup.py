"""Packaging: three rooms of the checkout install under one import name, ``fastseg``.

``kernels`` and ``pipelines`` are names of other people's packages, so the folders stay where they
are and are mapped to ``fastseg.kernels`` and ``fastseg.pipelines``.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ROOMS = {"fastseg": "fastseg", "fastseg.kernels": "kernels", "fastseg.pipelines": "pipelines"}
DALI = 'nvidia-dali-cuda130>=2.4,<3; sys_platform == "linux"'
TRITON = 'triton>=3.6; sys_platform == "linux"'
PLOT = "matplotlib>=3.8"
EVENTS = "h5py>=3.10"
TRANSFORMERS = "transformers>=5"
PEFT = "peft>=0.17"
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]

setup(
    name="fastseg",
    version="0.1.0",
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
    package_data={"": ["*.c"], "fastseg": ["py.typed"]},
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
        PLOT,
    ],
    extras_require={
        "dali": [DALI],
        "triton": [TRITON],
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
