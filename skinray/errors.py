"""What can go wrong, as a tree: every error that a user can mend says what, which value, and what to do.

SkinrayError             exit code 1
+-- ConfigError          exit code 2: a setting is unknown, missing or out of range
+-- StorageError         a URI cannot be listed, read or written
|   +-- OutputExistsError    the output is already there, or belongs to something else
+-- CatalogError         a data set's own files are not as published
+-- DatasetError         a prepared data set is missing, incomplete or of another version
|   +-- LeakError            exit code 3: one patient, lesion or photo stands on both sides of a split
+-- BundleError          a bundle is missing a file, or a file was changed
+-- TrainingError        training could not start or did not end
+-- ScoringError         the rows written are not the photos listed

ImageError               one photo cannot be used: a row with `error_code`, never the end of a job
"""

from collections.abc import Mapping
from typing import Literal

# The exit code of a command that did its work, and passed a stated limit.
LIMIT_PASSED = 3

ImageErrorCode = Literal[
    "missing",
    "unreadable",
    "empty",
    "not_an_image",
    "truncated",
    "corrupt",
    "too_large",
    "burned_in",
    "corrupt_shard",
    "changed",
]
IMAGE_ERRORS: Mapping[str, str] = {
    "missing": "listed, but gone",
    "unreadable": "could not be fetched from where it lies",
    "empty": "has no bytes",
    "not_an_image": "no photo in a known format",
    "truncated": "ends before the photo does",
    "corrupt": "damaged",
    "too_large": "more pixels than are decoded, or more bytes than are read",
    "burned_in": "identifying text is part of the picture",
    "corrupt_shard": "its shard cannot be read to the end",
    "changed": "was written anew meanwhile",
}
"""What each code means, for a person."""


class SkinrayError(Exception):
    """A failure that is reported as one line and ends the command with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # One line whatever a value that it quotes holds: logs and schedulers take a line for a message.
        super().__init__(" ".join(message.split()))


class ConfigError(SkinrayError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class StorageError(SkinrayError):
    """A URI cannot be listed, read or written."""


class OutputExistsError(StorageError):
    """The output folder already holds something that this run must not replace."""


class CatalogError(SkinrayError):
    """A source data set's files, columns or labels are not what its layout says."""


class DatasetError(SkinrayError):
    """A prepared data set is missing, incomplete or of another schema version."""


class LeakError(DatasetError):
    """A data set has one patient, lesion or photo on both sides of a split or fold."""

    exit_code = 3


class BundleError(SkinrayError):
    """A bundle is incomplete, changed, or of another schema version."""


class TrainingError(SkinrayError):
    """Training could not start or did not end."""


class ScoringError(SkinrayError):
    """The rows of a run are not exactly the photos it listed."""


class ImageError(Exception):
    """One photo cannot be used.

    Args:
        code: The machine-readable reason, stored in `error_code`.
        detail: One sentence for a person, stored in `error_detail`.
    """

    def __init__(self, code: ImageErrorCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: ImageErrorCode = code
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ImageErrorCode, str]]:
        return ImageError, (self.code, self.detail)
