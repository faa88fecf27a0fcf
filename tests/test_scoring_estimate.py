"""What a sample says of a run: counted right, and growing with the run."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from skinray.bundle import load_bundle
from skinray.config import ScoreSettings
from skinray.listing import list_photos, listed
from skinray.scoring_estimate import SAMPLE, START_UP_S, estimate
from skinray.synthetic import break_file
from skinray.training import TrainedModel

pytestmark = pytest.mark.ray


def test_a_sample_is_read_decoded_and_classified(trained: TrainedModel, drawn_photos: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((drawn_photos / "images").iterdir())[:30]):
        shutil.copy(path, tmp_path)
        if number % 3 == 0:
            (tmp_path / path.name).write_bytes(break_file(path.read_bytes(), "truncated"))
    settings = ScoreSettings(bundle=trained.bundle_uri, input=str(tmp_path), output="unused")
    bundle, listing = load_bundle(trained.bundle_uri), list_photos(str(tmp_path), 256, "path")
    found = estimate(bundle, listing, settings)
    assert (found.sampled, found.bad) == (30, 10)
    assert min(found.decode_ms, found.classify_ms) > 0

    many = listed(pa.concat_tables([listing.photos] * 2000), 256)
    longer = estimate(bundle, many, settings)
    assert longer.sampled == SAMPLE
    assert longer.seconds - START_UP_S > 10 * (found.seconds - START_UP_S)
    assert 1e9 < found.memory_bytes <= longer.memory_bytes < 20e9
    assert " h " in longer.in_words()[1] or " min " in longer.in_words()[1]
    assert "10 cannot be used" in found.in_words()[0]
