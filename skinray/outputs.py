"""The folders that commands write: claimed before anything is written to them, published when all of it is.

A folder is either *published* (its `_manifest.json` is there, written last) or not there at all for a reader. While it is being
written it carries `_incomplete.json`, so that a rerun may take over what a killed run left.
"""

import json
import os
from typing import Any

from skinray import storage
from skinray.errors import OutputExistsError


def claim_folder(uri: str, kind: str, settings: dict[str, Any], keep: bool = False) -> None:
    """Takes an output folder for one run before anything is written to it.

    A folder left behind by a killed run of the same kind and settings is taken over.

    Args:
        uri: The folder to write.
        kind: What will stand there, such as "dataset".
        settings: The resolved settings of the run.
        keep: Keep what the killed run wrote, to go on from it; otherwise it is removed.

    Raises:
        OutputExistsError: The folder is published already, or holds something else.
    """
    if storage.exists(storage.join(uri, storage.MANIFEST_NAME)):
        raise OutputExistsError(f"output {uri} already exists: choose another --output, or remove it first")
    marker = storage.join(uri, storage.INCOMPLETE_NAME)
    mine = {"kind": kind, "settings": settings}
    if storage.exists(marker):
        if storage.read_json(marker) != json.loads(json.dumps(mine)):
            raise OutputExistsError(
                f"output {uri} holds an unfinished run with other settings: choose another --output, or remove it first"
            )
        if keep:
            return
        storage.delete_folder(uri)
    if _holds_something(uri):
        raise OutputExistsError(f"output {uri} is not empty: choose another --output, or remove it first")
    if not storage.create_file(marker, storage.encoded_json(mine)):
        raise OutputExistsError(f"output {uri} was taken by another command this moment: choose another --output")


def _holds_something(uri: str) -> bool:
    """True for a file, a prefix with objects, or a folder with entries, but for a temporary file that a kill left; an empty local
    folder may be written to."""
    if not storage.exists(uri):
        return False
    path = storage.path_of(uri)
    if storage.is_remote(uri) or not os.path.isdir(path):
        return True
    return any(not storage.is_temporary(name) for name in os.listdir(path))


def publish_folder(uri: str, manifest: dict[str, Any]) -> None:
    """Writes the manifest, which is what makes the folder exist for readers, and drops the marker of the running run.

    A folder that is published already shows the new manifest's content from then on.
    """
    storage.write_json(storage.join(uri, storage.MANIFEST_NAME), manifest)
    storage.delete_file(storage.join(uri, storage.INCOMPLETE_NAME))
