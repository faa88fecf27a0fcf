"""s3fs, set up so that a store that throttles, restarts or cuts connections costs time and nothing else.

Who repeats what, so that attempts add up and do not multiply (as s3fs comes, a read of a store that is away is tried 125 times):

    a call (503 SlowDown, 500, time-out, refused or cut connection, cut answer)    botocore, with exponential, random waits
    a body that ends early, after a call that succeeded                            s3fs, with exponential waits
    404, 403, a bucket that is not there                                           nobody: the first answer counts
"""

import contextlib
import errno
import functools
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs.errors import translate_boto_error

# A call is given up after so many attempts, with waits of 0 to 1, 2, 4 ... 64 s before them, a minute in all on average: longer
# than a store throttles or fails over, shorter than a wrong endpoint bores. While a fifth of the calls fail, 3 in a million do
# so eight times. AWS_MAX_ATTEMPTS changes it.
ATTEMPTS = 8
# Not "standard", which stops repeating when more than about a third of all calls fail (500 tokens, 5 a repetition, 1 back for a
# success): of 600 reads while half of the calls failed it lost 119, this one 1. Nor "adaptive", which while a fifth failed had
# not read them after a minute and a half. AWS_RETRY_MODE changes it.
_RETRY_MODE = "legacy"
# Threads that read side by side. Of 25 KB objects 30 ms away one reads 24 a second, 16 read 150, 32 read 300 to 430; more cannot,
# because a read takes 1.5 ms of s3fs's single thread.
READ_THREADS = 32
# So many, and a few for what goes on meanwhile; botocore has 10, and the others would wait for them.
_CONNECTIONS = READ_THREADS + 8
# Of a file of twice the size or more that is written; s3fs holds ten parts in memory, of 50 MB as it comes.
PART_BYTES = 16 << 20
# What a store's failures are raised as beside OSError; a body that ended early once too often is aiohttp's.
STORE_ERRORS = (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)
# The store may fail to delete single objects of a call that succeeds.
_DELETE_ROUNDS = 4


class ObjectStore(s3fs.S3FileSystem):  # type: ignore[misc]
    """S3 and what speaks its protocol; endpoint and credentials come from the `AWS_*` environment variables."""

    # Attempts at a body, with waits of 0.1, 0.17, 0.29 ... s between them, 5 s in all.
    retries = 8
    # Between two packets, not of a whole body. A call that is answered after that will not be soon.
    read_timeout = 20
    connect_timeout = 5

    async def _call_s3(self, method: str, *options: Any, **kwargs: Any) -> Any:
        """One call of the S3 API, which botocore repeats; s3fs would repeat all of that."""
        await self.set_session()
        call = getattr(await self.get_s3(kwargs.get("Bucket")), method)
        try:
            return await call(**self._get_s3_method_kwargs(call, *options, **kwargs))
        except ClientError as error:
            raise translate_boto_error(error) from error
        except HTTPClientError as error:
            # Under its own name s3fs, which reads the body of this call, would take it for one that ended early.
            raise ConnectionError(str(error)) from error

    call_s3 = sync_wrapper(_call_s3)

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """Uploads a file, in parts when it is large."""
        try:
            await super()._put_file(lpath, rpath, chunksize=PART_BYTES, **kwargs)
        except FileNotFoundError as error:
            # The parts were put together and the answer was lost: asked again, some stores know nothing of them. Or they were
            # thrown away meanwhile. Doing it again is right for both.
            if _error_code(error) != "NoSuchUpload":
                raise
            await super()._put_file(lpath, rpath, chunksize=PART_BYTES, **kwargs)

    def is_there(self, path: str) -> bool:
        """True for an object, a prefix with objects, and a bucket.

        s3fs's own `exists` calls a bucket absent whenever it cannot be asked.
        """
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """The whole content of one object, in one call: s3fs asks for its size first if it may fetch parts side by side."""
        return cast(bytes, self.cat_file(path, max_concurrency=1))

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless there is one; True when it holds `data` now.

        A store that does not know If-None-Match replaces what is there.
        """
        try:
            self.pipe_file(path, data, mode="create")
        except OSError as error:
            # Another one was quicker; or this call itself, which was done, and made again because its answer was lost. 409 is
            # answered to writes at the same time.
            if _error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == data
            return False
        return True

    def pages_below(self, path: str) -> Iterator[list[dict[str, Any]]]:
        """Every object below a prefix, up to a thousand at a time, in the order of their keys' bytes.

        Args:
            path: Bucket, and what the keys begin with before a slash.

        Yields:
            What the store says of each: Key, without the bucket; Size; ETag; LastModified.
        """
        bucket, _, key = path.partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            page = self.call_s3("list_objects_v2", **asked)
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def remove_below(self, path: str) -> None:
        """Deletes the object at `path` and every one below it; the bucket stays.

        s3fs's own `rm` says nothing of objects that the store could not delete, and takes an empty path for the bucket.

        Raises:
            OSError: Some objects cannot be deleted.
        """
        bucket, _, key = path.partition("/")
        if key:
            self.call_s3("delete_object", Bucket=bucket, Key=key)
        for page in self.pages_below(path):
            self._delete(bucket, [each["Key"] for each in page])

    def _delete(self, bucket: str, keys: Sequence[str]) -> None:
        failed: list[dict[str, Any]] = []
        for round_ in range(_DELETE_ROUNDS):
            if not keys:
                return
            time.sleep(random.random() * 2**round_ if round_ else 0)
            asked = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            failed = self.call_s3("delete_objects", Bucket=bucket, Delete=asked).get("Errors", [])
            keys = [each["Key"] for each in failed]
        if failed:
            first = failed[0]
            raise OSError(errno.EIO, f"{len(failed)} objects are not deleted, the first is {first['Key']} ({first.get('Code')})")


def object_store() -> ObjectStore:
    """The store that the environment names now.

    One for all threads: fsspec keeps one for each, with connections of its own, and each has to be set up first.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _making:
        return _store(os.getpid(), environment)


_making = threading.Lock()


@functools.lru_cache(maxsize=4)
def _store(_process: int, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    """A store for a process (it does not outlive a fork) and for what its environment says."""
    known = dict(environment)
    mode, attempts = known.get("AWS_RETRY_MODE", _RETRY_MODE), int(known.get("AWS_MAX_ATTEMPTS", ATTEMPTS))
    return ObjectStore(
        # Listings are never cached: other processes write there too.
        use_listings_cache=False,
        default_fill_cache=False,
        config_kwargs={
            "retries": {"mode": mode, "total_max_attempts": attempts},
            "max_pool_connections": _CONNECTIONS,
        },
        skip_instance_cache=True,
    )


def _error_code(error: BaseException) -> str:
    """What the store called it, "" when it was not the store."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
