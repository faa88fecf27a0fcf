"""The page says what report.json says, and lets nothing in."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pytest

from skinray import storage
from skinray.drift import measure_drift
from skinray.reports import NOT_A_DEVICE, distribution_plot
from skinray.screening_page import drift_in_words, headline, remarks_of
from tests.test_screening_report import described, published, report_of, run_rows

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&{{ 7 * 7 }}\u202egpj.exe'
# Elements that the template itself has; whatever else stands in a page came from the archive.
ELEMENTS = re.compile(
    "html|head|meta|title|link|style|body|main|p|div|h1|h2|h3|ul|ol|li|b|span|a|section|img|bdi|small|table|thead|tbody|tr|th|td|"
    "details|summary|dl|dt|dd|pre"
)


class _Parsed(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_harmless(page: str) -> None:
    """Well nested, no script, nothing from elsewhere."""
    parsed = _Parsed(page)
    assert parsed.open == []
    assert all(ELEMENTS.fullmatch(tag) for tag, _ in parsed.elements)
    for _, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def pages(tmp_path: Path, rows: Any, reference: Any = None, **changes: Any) -> tuple[dict[str, Any], str]:
    """What report.json holds, and the page."""
    root = tmp_path / "runs"
    if reference is not None:
        published(root, reference, "first", 10)
    report = report_of(published(root, rows), tmp_path / "out", **changes)
    return report, (tmp_path / "out" / "report.html").read_text()


def test_the_page_says_what_the_figures_say(tmp_path: Path) -> None:
    report, page = pages(tmp_path, described(run_rows(400, seed=1, shift=1.5)), described(run_rows(400)))
    check_harmless(page)
    text = html.unescape(page)
    assert NOT_A_DEVICE in text
    assert headline(report) in text
    assert drift_in_words(report) in text
    for remark in remarks_of(report):
        assert remark in text
    for row in report["worklist"]["listed"]:
        assert row["image_id"] in text
    for group in report["groups"]:
        assert f"<bdi>{group['name']}</bdi>" in text
        assert f"{100 * group['share']['low']:.1f} %" in text
    for group in report["without_score"]:
        assert group["code"] in text
        assert group["listed"][0]["detail"] in text
    for words in ("large drift", "higher than the", "/archive", "0123456789ab", "youden", "2026-11-20 01:01:00 UTC"):
        assert words in text
    assert 'class="verdict alarm"' in text


def test_names_from_the_archive_stay_text(tmp_path: Path) -> None:
    rows = described(run_rows(200))
    for name in ("image_id", "error_detail", "error_code", "patient_id", "lesion_id", "sex", "site"):
        rows[name] = rows[name].where(rows[name].isna(), HOSTILE + rows[name].astype(str))
    report, page = pages(tmp_path, rows, run_rows(200), thumbnails=10)
    check_harmless(page)
    assert str(markupsafe.escape(HOSTILE)) in page
    assert page.count("{{ 7 * 7 }}") == page.count("gpj.exe"), "no template either"
    assert HOSTILE in report["worklist"]["listed"][0]["image_id"]


def test_a_calm_night_is_calm(tmp_path: Path) -> None:
    report, page = pages(tmp_path, run_rows(300, seed=4), run_rows(300, seed=5))
    assert remarks_of(report) == []
    assert 'class="verdict "' in page
    assert "No drift beyond chance" in page


def test_a_model_whose_training_data_leaks_says_so_on_every_page(tmp_path: Path) -> None:
    manifest = Path(published(tmp_path / "runs", run_rows(100))) / storage.MANIFEST_NAME
    leaks = {"lesions across splits": 2}
    storage.write_json(str(manifest), {**storage.read_json(str(manifest)), "leaks_in_training": leaks})
    report = report_of(tmp_path / "runs", tmp_path / "out")
    assert report["run"]["leaks_in_training"] == leaks
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The data that the model was trained on leaks: 2 lesions across splits." in page
    assert 'class="verdict doubt"' in page


def test_what_is_small_but_beyond_chance_is_said_to_be() -> None:
    generator = np.random.default_rng(0)
    drift = measure_drift(generator.normal(size=50_000), generator.normal(size=50_000) + 0.1).recorded()
    words = drift_in_words({"drift": {"reference": {"uri": ""}, "score": drift}})
    assert words.startswith("Hardly any drift, though beyond chance")
    assert "p < 0.0001" in words


@pytest.mark.parametrize("reference", [None, np.array([], np.float32), np.linspace(0, 1, 50, dtype=np.float32)])
@pytest.mark.parametrize("scores", [np.array([], np.float32), np.array([np.nan, 0.2, 1.0], np.float32)])
def test_any_scores_can_be_drawn(scores: np.ndarray, reference: np.ndarray | None) -> None:
    png = distribution_plot(scores, reference, 0.5, "model, run")
    assert png.startswith(b"\x89PNG")
    assert distribution_plot(scores, reference, 0.5, "model, run") == png
