"""The report of a scoring run -> one HTML page for whoever goes through an archive each morning.

The page needs no network and runs no script. File names, ids and messages come from the archive and are escaped.
"""

import base64
import datetime
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from skinray.audit import leaks_in_words
from skinray.drift import SIGNIFICANCE
from skinray.errors import IMAGE_ERRORS
from skinray.input_gate import REASONS
from skinray.screening_figures import MEASURES, QUALITY

_VERDICTS = {
    "none": "no drift",
    "moderate": "moderate drift",
    "large": "large drift",
    "too few": "too few photos to tell",
    "no reference": "not compared",
}
_CHANGES = {"none": "no change", "higher": "higher", "lower": "lower", "too few": "too few photos to tell"}


def screening_page(
    report: Mapping[str, Any], plot: bytes, pictures: Mapping[str, str], worklist_uri: str, thumbnails: int
) -> str:
    """The page, as HTML.

    Args:
        report: What report.json holds.
        plot: The distribution of the scores, PNG.
        pictures: image_id -> data: URI; "" for a photo that cannot be shown, missing for one that is not to be.
        worklist_uri: Where the whole worklist is.
        thumbnails: Flagged photos that were to be shown.
    """
    remarks = remarks_of(report)
    drift = report["drift"]
    listed = report["worklist"]["listed"]
    page = _template().render(
        report=report,
        headline=headline(report),
        remarks=remarks,
        tone="alarm" if _verdict(report) == "large" else "doubt" if remarks else "",
        keys=_keys(report),
        shown=listed[:thumbnails],
        others=listed[thumbnails:],
        hidden=report["worklist"]["photos"] - len(listed),
        worklist_uri=worklist_uri,
        quality=QUALITY,
        pictures={image_id: uri for image_id, uri in pictures.items() if uri.startswith("data:image/")},
        asked=frozenset(pictures),
        verdict=drift_in_words(report),
        shares=[
            (name, drift[key], _CHANGES[drift[key]["change"]])
            for key, name in (("flagged", "flagged, of the scored"), ("without_score", "without a score, of the listed"))
            if drift["reference"]
        ],
        measures=_measures(drift),
        codes={**IMAGE_ERRORS, **REASONS},
        plot=f"data:image/png;base64,{base64.b64encode(plot).decode()}",
        provenance=_provenance(report),
        settings=json.dumps(report["run"]["settings"], indent=1, ensure_ascii=False),
    )
    return page.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8


def headline(report: Mapping[str, Any]) -> str:
    """The run in a sentence."""
    counts = report["counts"]
    bad = counts["refused"] + counts["failed"]
    look = f"{_photos(counts['flagged'])} to look at first, of {counts['scored']:,} scored"
    return f"{look}; {bad:,} could not be judged." if bad else f"{look}."


def remarks_of(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before anything else, in words."""
    drift, counts = report["drift"], report["counts"]
    remarks = [
        f"The data that the model was trained on leaks: {words}. What its thresholds were chosen by is too high."
        for words in leaks_in_words(report["run"]["leaks_in_training"])
    ]
    if _verdict(report) in ("moderate", "large"):
        remarks.append(
            f"Scores: {drift_in_words(report)} Until it is known why, a flag may not mean what it meant where the threshold "
            "was chosen."
        )
    for key, what in (("flagged", "Flagged"), ("without_score", "Without a score")):
        if drift["reference"] and drift[key]["change"] in ("higher", "lower"):
            found = drift[key]
            remarks.append(
                f"{what}: {_percent(found['share']['value'])} of the photos, {found['change']} than the "
                f"{_percent(found['reference']['value'])} of the reference, beyond chance."
            )
    for name, each in drift.get("measures", {}).items():
        if each["verdict"] in ("moderate", "large"):
            medians = f"median {each['median']:.4g}, in the reference {each['reference_median']:.4g}"
            remarks.append(f"The photos themselves: {_VERDICTS[each['verdict']]} of their {_measure(name)} ({medians}).")
    if not counts["scored"]:
        remarks.append("No photo of this run has a score.")
    return remarks


def drift_in_words(report: Mapping[str, Any]) -> str:
    """Whether the scores are those of the reference, in a sentence."""
    drift = report["drift"]
    if not drift["reference"]:
        return f"Not compared: {drift['why_none']}."
    score = drift["score"]
    if score["verdict"] == "too few":
        return f"Too few photos to tell: {score['photos']:,} against {score['reference_photos']:,}."
    medians = f"median {score['median']:.3f}, in the reference {score['reference_median']:.3f}"
    index = (
        f"PSI {score['psi']:.3f}, of which chance alone makes about {score['psi_by_chance']:.3f}; p {_p_value(score['p_value'])}"
    )
    said = _VERDICTS[score["verdict"]].capitalize()
    if score["verdict"] == "none":
        said = "Hardly any drift, though beyond chance" if score["p_value"] < SIGNIFICANCE else "No drift beyond chance"
    return f"{said} ({medians}; {index})."


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def _verdict(report: Mapping[str, Any]) -> str:
    return str(report["drift"]["score"]["verdict"]) if report["drift"]["reference"] else "no reference"


def _photos(count: int) -> str:
    return f"{count:,} photo" if count == 1 else f"{count:,} photos"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _measure(name: str) -> str:
    return MEASURES.get(name, name)


def _keys(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, share = report["counts"], report["flagged_share"]
    of_scored = f"flagged: {_percent(share['value'])} of the scored ({_percent(share['low'])} to {_percent(share['high'])})"
    keys = [
        (f"{counts['flagged']:,}", of_scored if share["value"] is not None else "flagged"),
        (f"{counts['scored']:,}", f"scored, of {counts['listed']:,} listed"),
        (f"{counts['refused']:,}", "refused: decoded, but nothing that the model may judge"),
        (f"{counts['failed']:,}", "failed: could not be read or decoded"),
        (f"{counts['skipped']:,}", "skipped: in an earlier run already, or not asked for"),
    ]
    if report["patients"]:
        keys.append((f"{report['patients']['patients']:,}", "patients"))
    return [*keys, (_VERDICTS[_verdict(report)], "of the scores, against the reference")]


def _measures(drift: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores and the photos' properties, a row each."""
    if not drift["reference"]:
        return []
    named = {"malignancy score": drift["score"], **{_measure(name): each for name, each in drift["measures"].items()}}
    return [{"name": name, "words": _VERDICTS[each["verdict"]], **each} for name, each in named.items()]


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    run, counts = report["run"], report["counts"]
    started = datetime.datetime.fromisoformat(run["started_at"])
    ended = started + datetime.timedelta(seconds=run["seconds"] or 0)
    reference = report["drift"]["reference"]
    return [
        ("run", run["run_id"]),
        ("its folder", run["uri"]),
        ("model_id", run["model_id"]),
        ("operating point", f"{run['operating_point']}: a score of {run['threshold']:.4f} or more is flagged"),
        ("started", started.strftime("%Y-%m-%d %H:%M:%S %Z")),
        ("last photo scored", ended.strftime("%Y-%m-%d %H:%M:%S %Z")),
        ("scored before it was cut off", f"{counts['resumed']:,} photos"),
        ("compared with", f"{reference['words']}: {reference['uri']}" if reference else report["drift"]["why_none"]),
        ("report by", f"skinray {report['version']}"),
    ]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count="{:,}".format, percent=_percent, number=_number, p=_p_value)
    return environment.from_string((files("skinray") / "web" / "screening.html").read_text(encoding="utf-8"))


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
