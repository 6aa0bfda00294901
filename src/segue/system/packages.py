"""Versions of installed packages. Imports nothing heavy."""

import importlib.metadata
from collections.abc import Iterable

from segue import __version__


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each of these packages that is installed.

    Segue's version is that of the code that runs: the metadata of an editable installation stay as they were on the
    day of the installation.
    """
    installed = {}
    for name in names:
        try:
            installed[name] = __version__ if name == "segue" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
