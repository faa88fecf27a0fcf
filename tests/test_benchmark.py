import json
import statistics
from pathlib import Path

import pytest

from skinray.cli import main


@pytest.mark.ray
@pytest.mark.slow
def test_the_benchmark_writes_every_rate_and_the_ratios_that_follow(
    ray_cluster: None, drawn_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "cnn_sequential", "--image-size-px", "32", "--photos", "64", "--rounds", "1"]
    file = tmp_path / "figures.json"
    assert main(["benchmark", "score", *arguments, "--input", str(drawn_photos / "images"), "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    rates = {name: figures[f"{name}_images_per_s"] for name in ("decode", "forward", "ceiling", "keras", "pipeline")}
    assert min(rates.values()) > 0
    forward = statistics.mean(figures["readings"]["forward"])
    assert len(figures["readings"]["forward"]) == 2, "before and after the pipeline"
    assert rates["ceiling"] == pytest.approx(1 / (1 / rates["decode"] + 1 / forward))
    assert figures["ratio_to_ceiling"] == pytest.approx(rates["pipeline"] / rates["ceiling"])
    assert figures["ratio_to_keras"] == pytest.approx(rates["pipeline"] / rates["keras"])
    assert figures["pipeline_images_per_s"] == statistics.median(figures["readings"]["pipeline"])
    assert f"pipeline / ceiling {figures['ratio_to_ceiling']:.2f}" in capsys.readouterr().out
    assert figures["largest_difference_to_keras"] <= 1e-5
    parts = ["Python and Ray", "listing", "processes", "TensorFlow and model", "first photos"]
    assert set(figures["start_up_parts"]) == set(parts)
    assert 1 < figures["start_up_s"] == pytest.approx(sum(figures["start_up_parts"].values()))


@pytest.mark.ray
def test_the_benchmark_of_prepare_sets_it_beside_a_plain_loop(ray_cluster: None, drawn_photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--photos", "300", "--rounds", "1", "--input", str(drawn_photos / "images"), "--json", str(file)]
    assert main(["benchmark", "prepare", *arguments]) == 0
    figures = json.loads(file.read_text())
    assert figures["photos"] == 300
    rates = {name: figures[f"{name}_images_per_s"] for name in ("plain", "inspect", "pipeline")}
    assert min(rates.values()) > 0
    assert figures["ratio_to_plain"] == pytest.approx(rates["pipeline"] / rates["plain"])
    assert 300 < figures["peak_memory_mb"] < 30_000


@pytest.mark.ray
@pytest.mark.slow
def test_the_benchmark_of_training_sets_it_beside_plain_keras(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--model", "cnn_sequential", "--image-size-px", "32", "--photos", "64", "--batch-size", "16", "--rounds", "1"]
    assert main(["benchmark", "train", *arguments, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    rates = {name: figures[f"{name}_images_per_s"] for name in ("ceiling", "keras", "pipeline")}
    assert min(rates.values()) > 0
    assert figures["ratio_to_ceiling"] == pytest.approx(rates["pipeline"] / rates["ceiling"])
    assert figures["ratio_to_keras"] == pytest.approx(rates["pipeline"] / rates["keras"])
    assert 0 <= figures["data_wait_share"] < 1
    assert f"pipeline / ceiling {figures['ratio_to_ceiling']:.2f}" in capsys.readouterr().out
