"""The tour for a newcomer, as the newcomer runs it."""

import pandas as pd
import pytest

from skinray import storage
from skinray.bundle import load_bundle
from tests.conftest import Demo


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
