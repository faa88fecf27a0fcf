"""The tour for a newcomer, as the newcomer runs it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinray import storage
from skinray.bundle import load_bundle
from skinray.drawing import draw_lesion
from tests.conftest import Demo
from tests.test_explain import build


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_makes_all_that_its_table_says(demo: Demo) -> None:
    output = demo.output
    stages = ["draw", "prepare", "train", "evaluate", "score", "serve"]
    assert [line.split()[0] for line in demo.printed.splitlines() if line.split()[:1] and line.split()[0] in stages] == stages
    assert [line[4:] for line in demo.said.splitlines() if line.startswith("--- ")] == stages
    assert "not a medical device" in demo.printed
    assert demo.said.count("epoch ") >= 15, "a line an epoch"

    bundle = load_bundle(str(output / "training" / "bundle"))
    metrics = storage.read_json(str(output / "evaluation" / "metrics.json"))
    assert metrics["model_id"] == bundle.model_id
    assert metrics["figures"]["roc_auc"]["value"] >= 0.90
    assert (output / "evaluation" / "roc.png").is_file()

    rows = pd.read_parquet(output / "predictions")
    assert len(rows) == 1000
    assert rows["image_id"].is_unique
    assert rows["status"].value_counts().to_dict() == {"scored": 980, "failed": 20}
    assert rows.loc[rows["status"] == "failed", "error_code"].notna().all()


@pytest.mark.ray
@pytest.mark.slow
def test_a_trained_model_looks_at_the_lesion_and_a_random_one_anywhere(demo: Demo) -> None:
    from skinray.explain import heat_maps

    bundle = load_bundle(str(demo.output / "training" / "bundle"))
    size = bundle.preprocessing.image_size_px
    drawn = [draw_lesion(1.5, patient_seed=7 * seed, lesion_seed=7 * seed + 1, photo_seed=7 * seed + 2) for seed in range(40)]
    photos = np.stack([np.asarray(Image.fromarray(photo).resize((size, size))) for photo, _ in drawn])
    inside = np.stack([np.asarray(Image.fromarray(mask).resize((size, size))) for _, mask in drawn])

    def share_inside(model: Any) -> float:
        maps = heat_maps(model, photos, [bundle.labels.codes.index("malignant")])
        return float((maps * inside).sum() / max(1.0, maps.sum()))

    learnt, random = share_inside(bundle.load_model()), share_inside(build("cnn_sequential", size=size))
    assert learnt > 2 * inside.mean(), "twice the share of a map that is as warm everywhere"
    assert learnt > random + 0.15
