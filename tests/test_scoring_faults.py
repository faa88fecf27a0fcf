"""Scoring from a bad store into the same: every photo is one row, and only what is truly broken or gone has no score."""

import datetime
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skinray import file_listing, storage
from skinray.cli import main
from skinray.config import ScoreSettings
from skinray.scoring import score_archive
from skinray.synthetic import BROKEN_KINDS, break_file
from skinray.training import TrainedModel
from tests.faulty_s3 import Faults, FaultyProxy

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NOW = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)
PHOTOS, BROKEN_OF_A_KIND = 100, 1


def predictions(run_uri: str) -> pd.DataFrame:
    parts = [path for path in file_listing.list_files(run_uri) if path.endswith(".parquet")]
    return pd.concat([storage.read_parquet(storage.join(run_uri, path)) for path in parts]).set_index("image_id")


def test_a_bad_store_costs_time_and_no_photo(
    trained: TrainedModel, drawn_photos: Path, s3_bucket: str, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for path in sorted((drawn_photos / "images").iterdir())[:PHOTOS]:
        shutil.copy(path, archive)
    names = sorted(path.name for path in archive.iterdir())
    kinds = [kind for kind in BROKEN_KINDS for _ in range(BROKEN_OF_A_KIND)]
    broken = names[3 :: PHOTOS // len(kinds)][: len(kinds)]
    for name, kind in zip(broken, kinds, strict=True):
        (archive / name).write_bytes(break_file((archive / name).read_bytes(), kind))
    gone = {name for name in names[5::30] if name not in broken}
    empty = {"empty 1.jpg", "empty 2.jpg", "empty 3.jpg"}
    for name in empty:
        (archive / name).write_bytes(b"")
    storage.upload_folder(archive, f"{s3_bucket}/archive")
    names = sorted([*names, *empty])

    asked = {"bundle": trained.bundle_uri, "input": f"{s3_bucket}/archive", "rows_per_block": 16}
    began = time.monotonic()
    good = score_archive(ScoreSettings.model_validate(asked | {"output": f"{s3_bucket}/good"}), NOW)
    undisturbed_s = time.monotonic() - began

    faults = Faults(
        slow_down=0.2,
        internal=0.05,
        cut=0.1,
        slow=0.05,
        most_in_a_row=5,
        gone=lambda path: "/archive/" in path and path.rpartition("/")[2] in gone,
    )
    command = ["score", "--bundle", trained.bundle_uri, "--input", f"{s3_bucket}/archive", "--output", f"{s3_bucket}/bad"]
    with s3_proxy.misbehaving(faults):
        began = time.monotonic()
        exit_code = main([*command, "--rows-per-block", "16", "--max-bad-fraction", "0.05"])
        disturbed_s = time.monotonic() - began
        done = dict(s3_proxy.done)
    print(f"{len(names)} photos: undisturbed {undisturbed_s:.1f} s, disturbed {disturbed_s:.1f} s, {done}")

    (manifest,) = [path for path in file_listing.list_files(f"{s3_bucket}/bad") if path.endswith(storage.MANIFEST_NAME)]
    rows = predictions(storage.join(s3_bucket, "bad", manifest.removesuffix(storage.MANIFEST_NAME)))
    before = predictions(good.uri)
    assert sorted(rows.index) == sorted(before.index) == names, "every photo is one row, none is lost"
    assert set(before.index[before["status"] == "failed"]) == {*broken, *empty}
    assert set(rows.index[rows["status"] == "failed"]) == {*broken, *empty, *gone}
    assert set(rows.loc[sorted(gone), "error_code"]) == {"missing"}
    assert set(rows.loc[sorted(empty), "error_code"]) == {"empty"}
    assert rows.loc[broken, "error_code"].tolist() == before.loc[broken, "error_code"].tolist()
    scored = rows.index[rows["status"] == "scored"]
    assert (rows.loc[scored, "image_sha256"] == before.loc[scored, "image_sha256"]).all()
    np.testing.assert_allclose(rows.loc[scored, "malignancy_score"], before.loc[scored, "malignancy_score"], atol=1e-5)
    assert exit_code == 3, "more than 5 % have no score"
    assert done["gone"] == len(gone), "a photo that is gone is asked for once"
    assert min(done[name] for name in ("slow_down", "internal", "cut", "slow")) > 5, done
    assert not any("/_blocks/" in path for path in file_listing.list_files(f"{s3_bucket}/bad"))
