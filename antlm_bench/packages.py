"""The error for a package that is not installed, with the command that installs it.

The default installation has every package except those of the extras. An installation from
requirements-slim.txt lacks all modules of INSTALL_ARGUMENTS, torch among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from antlm_bench.errors import MissingPackage, first_line

OUR_PACKAGE = __name__.partition(".")[0]
DEFAULT_INSTALLATION = "antlm-bench"
PIP_CHECK = "`pip check` lists packages that are missing or of a wrong version"
FIGURES = "altair vl-convert-python"
INSTALL_ARGUMENTS: dict[str, str] = {
    "accelerate": DEFAULT_INSTALLATION,
    "altair": FIGURES,
    "datasets": "datasets",
    "evaluate": "evaluate",
    "gguf": "'antlm-bench[gguf]'",
    "huggingface_hub": DEFAULT_INSTALLATION,
    "jinja2": FIGURES,
    "lm_eval": DEFAULT_INSTALLATION,
    "markupsafe": FIGURES,
    "minicons": DEFAULT_INSTALLATION,
    "nltk": "nltk",
    "pandas": "pandas",
    "peft": "'antlm-bench[lora]'",
    "ray": "'antlm-bench[ray]'",
    "safetensors": DEFAULT_INSTALLATION,
    "sklearn": "scikit-learn",
    "tokenizers": DEFAULT_INSTALLATION,
    "torch": DEFAULT_INSTALLATION,
    "transformers": DEFAULT_INSTALLATION,
    "vl_convert": FIGURES,
}
"""Module that an installation may lack -> what `pip install` takes to add it."""


@contextmanager
def require_packages(location: str = "", install: str = "") -> Iterator[None]:
    """Turn the ImportError of a package into a MissingPackage. Also usable as a decorator.

    location: the option, argument or function that needs the package. install: what `pip install`
    takes; "" = see INSTALL_ARGUMENTS.
    """
    try:
        yield
    except MissingPackage:
        raise
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module == OUR_PACKAGE:
            raise  # a bug
        if isinstance(error, ModuleNotFoundError) and module:
            raise missing_package(module, location, install) from error
        raise MissingPackage(
            f"a package that this needs cannot be imported: {first_line(error)}",
            location=location,
            hint=f"pip install --force-reinstall {install}" if install else PIP_CHECK,
        ) from error


def missing_package(module: str, location: str = "", install: str = "") -> MissingPackage:
    """Return the error for a package that is not installed. Arguments as of `require_packages`."""
    install = install or INSTALL_ARGUMENTS.get(module, "")
    return MissingPackage(
        f"this needs the package {module}, which is not installed",
        location=location,
        hint=f"pip install {install}" if install else PIP_CHECK,
    )
