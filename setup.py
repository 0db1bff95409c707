"""Install the rooms of the house under one name.

The folders `kernels`, `storage` and `train` stand at the top of the repository and are installed as `btr.kernels`,
`btr.storage` and `btr.train`, because `kernels` on the import path belongs to another package.
"""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
ROOMS = {"btr": "btr", "btr.kernels": "kernels", "btr.storage": "storage", "btr.train": "train"}  # import name: folder
SAMPLE = {"btr.sample": "corpus"}  # no modules: the sample corpus, which `btr precompute sample` reads


def find_packages() -> dict[str, str]:
    """Map every package to its folder: the rooms, and each folder below them that has an `__init__.py`."""
    found: dict[str, str] = {}
    for name, folder in ROOMS.items():
        for init in (HERE / folder).rglob("__init__.py"):
            below = init.parent.relative_to(HERE / folder).parts
            found[".".join((name, *below))] = "/".join((folder, *below))
    return found


def read_version() -> str:
    """Read `__version__` in the text of `btr/__init__.py`: importing it would need what is about to be installed."""
    text = (HERE / "btr" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('btr/__init__.py has no line of the form __version__ = "1.2.3"')
    return match.group(1)


PACKAGES = find_packages() | SAMPLE

setup(
    name="btr-reader",  # `btr` is another package of the index; what is imported is btr all the same
    version=read_version(),
    description="Binary token representations: a reader that keeps every passage as bits and answers from them",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    keywords=[
        "question answering",
        "retrieval-augmented generation",
        "binarization",
        "Fusion-in-Decoder",
        "BERT",
        "T5",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Indexing",
        "Typing :: Typed",
    ],
    packages=sorted(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "btr": ["py.typed", "default_reader/*"],
        "btr.sample": ["*.jsonl", "README.md"],
        "btr.serve": ["*.html"],
        "btr.train": ["recipes/*.toml"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.9",
        "transformers>=5.23",
        "numpy>=2.0",
        "numba>=0.60",
        "llvmlite>=0.43",
        "lmdb>=3.0",
        "bitarray>=3",
        "datasets>=3",
        "pyarrow>=16.1",
        "safetensors>=0.8",
        "tokenizers>=0.23.1",
        "huggingface-hub>=1.31",
        "bm25s>=0.3.6",
        "PyStemmer>=3.0",
        "zstandard>=0.24",
        "fastapi>=0.115.3",
        "starlette>=0.40",
        "uvicorn>=0.30",
        "h11>=0.14",
        "pydantic>=2.8",
        "pydantic-settings>=2.4",
        "prometheus-client>=0.20",
    ],
    extras_require={
        "documents": ["markitdown[docx,pdf,pptx,xlsx]>=0.1.3"],
        "plots": ["matplotlib>=3.9"],
        "bench": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],  # what `btr bench` compares with
        "gpus": ["accelerate>=1.0"],
        "ray": ["ray>=2.40"],
        "mcp": ["mcp>=2.0"],
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "httpx>=0.27",
            "openai>=1.50",
            "setuptools>=77.0.3",
        ],  # a test builds the wheel
        "dev": ["ruff>=0.15", "mypy>=1.18", "matplotlib>=3.9"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
        # what else tests need that skip without it
        "all-tests": [
            "selenium>=4.20",
            "accelerate>=1.0",
            "ray>=2.40",
            "mcp>=2.0",
            "haystack-ai>=2.0",
            "langchain-core>=1.0",
            "llama-index-core>=0.14",
            "nbclient>=0.10",
            "ipykernel>=6.29",
            "markitdown>=0.1.3",
            "sentence-transformers>=5.0",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
        ],
    },
    entry_points={"console_scripts": ["btr = btr.__main__:cli"]},
)
