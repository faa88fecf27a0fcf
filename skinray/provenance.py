"""Which code made something: part of every bundle, evaluation and run."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import skinray


def code_commit() -> str | None:
    """The commit of the code that runs, where git finds it in a checkout or SKINRAY_COMMIT names it; None elsewhere."""
    if "SKINRAY_COMMIT" in os.environ:
        return os.environ["SKINRAY_COMMIT"]
    folder = Path(skinray.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:  # a checkout may lie where git does not
        return None
    return asked.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of skinray, Python and the libraries on which an answer depends."""
    libraries = {name: version(name) for name in ("keras", "numpy", "pillow", "ray", "simplejpeg", "tensorflow")}
    return libraries | {"python": platform.python_version(), "skinray": skinray.__version__}
