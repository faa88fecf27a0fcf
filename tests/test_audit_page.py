"""The page says what the audit found, trusts no name in it, needs no network, and stays small however much was found."""

import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinray.audit import PLURALS, Audit, Conflict, Leak, Pair, PhotoFact, Shortcut, examine
from skinray.audit_page import audit_page, shown_photos
from skinray.duplicates import Duplicates

HOSTILE = "<script>alert('x')</script>\" onerror=\"alert(1)"
THUMBNAIL = "data:image/jpeg;base64,AAAA"


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._section = "top"
        self._text: dict[str, list[str]] = {"top": []}
        self._skipped = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._skipped = tag in ("style", "title")
        if tag not in ("bdi", "wbr"):
            self._text[self._section].append(" ")  # as a cell or a line of its own is set off to the eye
        if tag == "h2":
            self._section = str(dict(attrs)["id"])
            self._text[self._section] = []

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text[self._section].append(data)

    def text(self, section: str) -> str:
        return " ".join("".join(self._text[section]).replace("\N{NO-BREAK SPACE}", " ").split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(**changes: Any) -> Audit:
    nothing: dict[str, Any] = {
        "photos": 0,
        "counts": {},
        "leak_counts": {},
        "leaked_photos": {},
        "contradicted_photos": {},
        "class_counts": {},
        "sizes": {},
        "missing": {},
        "shortcuts": (),
        "leaks": (),
        "conflicts": (),
        "pairs": (),
        "unreadable": (),
    }
    return Audit(**(nothing | changes))


def with_leaks(*leaks: Leak, **changes: Any) -> Audit:
    counts = Counter(f"{PLURALS[leak.kind]} across {leak.between}" for leak in leaks)
    return made(leaks=leaks, leak_counts=dict(counts), counts={"leaks": len(leaks)}, photos=4001, **changes)


def fact(image_id: str, label: str = "nv", split: str | None = "train", fold: int | None = None) -> PhotoFact:
    return PhotoFact(image_id=image_id, label=label, split=split, fold=fold)


def leak(
    kind: Any, number: int = 0, between: Any = "splits", sides: tuple[str, ...] = ("train", "test"), photos: int = 2
) -> Leak:
    def photo(place: int) -> PhotoFact:
        side = sides[min(place, len(sides) - 1)]
        where = {"split": side} if between == "splits" else {"fold": int(side.removeprefix("fold "))}
        return fact(f"{kind}{number}-{place}", **where)

    shown = tuple(photo(place) for place in range(photos))
    return Leak(kind=kind, between=between, name=f"{number}", sides=sides, photos=shown, photo_count=photos)


def conflict(kind: Any, name: str, labels: tuple[str, ...], ids: tuple[str, ...]) -> Conflict:
    photos = tuple(fact(one, labels[min(place, len(labels) - 1)]) for place, one in enumerate(ids))
    return Conflict(kind=kind, name=name, labels=labels, photos=photos, photo_count=len(ids))


def pair(kind: Any, one: PhotoFact, other: PhotoFact, similarity: float | None = 1.0) -> Pair:
    return Pair(kind=kind, photos=(one, other), similarity=similarity)


def table(rows: int, **columns: Any) -> pd.DataFrame:
    """Photos as `examine` takes them."""
    usual: dict[str, Any] = {
        "image_id": [f"photo{row}" for row in range(rows)],
        "label": "nv",
        "split": "train",
        "fold": None,
        "patient_id": None,
        "lesion_id": None,
        "age": 50.0,
        "sex": "female",
        "site": None,
        "width_px": 600,
        "height_px": 450,
        "file_bytes": 10_000,
        "jpeg_quality": 90,
        "removed": "",
    }
    return pd.DataFrame(usual | columns, index=range(rows))


def duplicates(*pairs: tuple[int, int, str, float]) -> Duplicates:
    return Duplicates(
        np.array([(one, two) for one, two, _, _ in pairs], np.int64).reshape(-1, 2),
        np.array([kind for _, _, kind, _ in pairs], np.str_),
        np.array([similarity for _, _, _, similarity in pairs], np.float32),
    )


def page_of(audit: Audit) -> Page:
    return Page(audit_page(audit, "the/data", dict.fromkeys(shown_photos(audit), THUMBNAIL)))


def found() -> Audit:
    """Three photos of six twice: across the split, under two labels, and neither."""
    photos = table(
        6,
        split=["train", "test", "train", "train", "train", "train"],
        label=["nv", "nv", "mel", "nv", "bcc", "bcc"],
    )
    pairs = duplicates((0, 1, "exact", 1.0), (2, 3, "near", 0.9512), (4, 5, "near", 0.9876))
    return examine(photos, pairs, [], ["mel", "bcc"])


def test_the_verdict_names_the_leaks() -> None:
    top = page_of(found()).text("top")
    assert "Leaks: 1 duplicate cluster stands on both sides of the split." in top
    assert "Figures measured on this data set would be too high." in top
    assert "1 of the 1 test photos (100 %) has a copy on another side." in top
    assert "1 duplicate cluster has contradicting labels, 1 of the 1 photos labelled mel among them." in top
    assert "No photo names its patient or lesion" in top
    assert "Research software, not a medical device." in top


def test_the_verdict_tells_splits_and_folds_apart() -> None:
    three = leak("lesion", 1, sides=("train", "validation", "test"))
    audit = with_leaks(leak("duplicates"), leak("lesion"), three, leak("patient", between="folds", sides=("fold 0", "fold 1")))
    top = page_of(audit).text("top")
    assert "Leaks: 1 duplicate cluster and 2 lesions stand on more than one side of the split; 1 patient stands in" in top


def test_without_leaks_the_verdict_says_among_how_many_photos() -> None:
    page = page_of(made(photos=4001, class_counts={"train": {"nv": 3001}, "test": {"nv": 1000}}))
    assert "No leaks found among 4,001 photos." in page.text("top")
    assert {"class": "verdict clear"} in page.named("div")
    assert page.text("leaks") == "Leaks None: no patient, lesion or duplicate cluster stands on more than one side."


def test_a_data_set_without_a_split_is_not_called_free_of_leaks() -> None:
    audit = examine(table(3, split=None), duplicates((0, 1, "exact", 1.0)), [], [])
    page = page_of(audit)
    assert "No leaks" not in page.text("top")
    assert "3 photos in no split" in page.text("top")
    assert "1 duplicate cluster of 2 photos: a split that takes photos one by one would divide them." in page.text("top")
    assert "None to look for" in page.text("leaks")


def test_what_was_not_looked_at_is_said() -> None:
    photos = table(4, split=["train", "test", None, "test"], patient_id=["a", None, None, None], lesion_id=["1", "2", "3", "4"])
    page = page_of(examine(photos, duplicates(), [], []))
    assert "75.0 % of the photos name no patient" in page.text("top")
    assert "1 photo in no split" in page.text("top")
    assert "lesion:" not in page.text("top")


def test_the_key_numbers_have_separators() -> None:
    names = ("exact_pairs", "near_pairs", "listed_pairs", "clusters", "photos_in_clusters", "conflicts_duplicates")
    counts = {name: 1000 * number for number, name in enumerate((*names, "conflicts_lesion", "leaks", "unreadable"), start=1)}
    text = page_of(made(photos=123456, counts=counts)).text("top")
    for number in ("123,456 photos", "1,000 exact", "2,000 near", "3,000 pairs", "4,000 clusters of 5,000 duplicates"):
        assert number in text
    assert "13,000 label conflicts: 6,000 of duplicates, 7,000 of lesions" in text
    assert "8,000 leaks" in text
    assert "9,000 unreadable files" in text


def test_leaks_are_counted_by_kind_and_sides() -> None:
    folds = ("fold 0", "fold 1")
    leaks = [leak("lesion", n) for n in range(3)] + [leak("lesion", 9, sides=("train", "validation"))]
    text = page_of(with_leaks(*leaks, leak("patient", between="folds", sides=folds))).text("leaks")
    assert "lesions splits 4 train + test: 3 train + validation: 1" in text
    assert "patients folds 1 fold 0 + fold 1: 1" in text
    assert "patient 0 nv train fold 0 patient0-0 nv train fold 1 patient0-1" in text


def test_a_case_shows_one_photo_of_each_side_before_a_second_of_any() -> None:
    photos = table(9, split=["train"] * 8 + ["test"])
    pairs = [(0, row, "near", 0.96) for row in range(1, 8)]
    audit = examine(photos, duplicates(*pairs, (0, 8, "near", 0.94)), [], [])
    assert shown_photos(audit)[:4] == ["photo0", "photo8", "photo1", "photo2"]
    text = page_of(audit).text("leaks")
    assert "cluster 1 alike to the eye, similarity 0.940 nv train photo0 nv test photo8" in text
    assert "and 5 more photos" in text


def test_a_photo_says_its_fold_where_folds_are_at_odds() -> None:
    photos = table(
        6, patient_id="P", fold=[0, 1, 2, 3, 4, 4], label=["nv", "nv", "nv", "nv", "nv", "mel"], lesion_id=list("abcdee")
    )
    page = page_of(examine(photos, duplicates(), [], []))
    assert "patient P also fold 4 nv train fold 0 photo0 nv train fold 1 photo1" in page.text("leaks")
    assert "lesion e mel train photo5 nv train photo4" in page.text("conflicts")


def test_figures_are_of_all_findings_and_not_of_those_listed() -> None:
    audit = with_leaks(
        leak("lesion"),
        leaked_photos={"train": 700, "test": 50},
        contradicted_photos={"mel": 3, "nv": 4},
        class_counts={"train": {"mel": 10, "nv": 790}, "test": {"mel": 5, "nv": 195}},
    )
    audit = audit.model_copy(
        update={"counts": {"conflicts_lesion": 3}, "conflicts": (conflict("lesion", "L", ("mel", "nv"), ("a", "b")),)}
    )
    page = page_of(audit)
    assert "50 of the 200 test photos (25.0 %) have their lesion on another side." in page.text("top")
    assert "3 lesions have contradicting labels, 3 of the 15 photos labelled mel among them." in page.text("top")
    assert "Photos with their lesion on another side train 700 of 800 87.5 % test 50 of 200 25.0 %" in page.text("leaks")
    assert "under another label too mel 3 of 15 20.0 % nv 4 of 985 0.4 %" in page.text("conflicts")


def test_every_combination_is_among_the_few_that_are_shown() -> None:
    many = [leak("duplicates", number) for number in range(500)]
    rare = leak("patient", between="folds", sides=("fold 0", "fold 1"))
    assert {"patient0-0", "patient0-1"} <= set(shown_photos(with_leaks(*many, rare)))


def test_conflicts_are_counted_by_pair_of_labels() -> None:
    audit = made(
        photos=2000,
        conflicts=(
            conflict("duplicates", "cluster 1", ("bcc", "mel", "nv"), ("a", "b", "c")),
            conflict("duplicates", "cluster 2", ("mel", "nv"), ("d", "e")),
            conflict("lesion", "L1", ("mel", "nv"), ("a", "d")),
        ),
        pairs=(pair("exact", fact("d", "mel"), fact("e")),),
        counts={"conflicts_duplicates": 2, "conflicts_lesion": 1},
        contradicted_photos={"mel": 2, "nv": 2},
        class_counts={"train": {"mel": 3, "nv": 1990}, "test": {"mel": 1, "nv": 0}},
    )
    text = page_of(audit).text("conflicts")
    assert "mel and nv 2 1 bcc and mel 1 0 bcc and nv 1 0" in text
    assert "mel 2 of 4 50.0 %" in text
    assert "nv 2 of 1,990 0.1 %" in text
    assert "cluster 2 the same file mel train d nv train e" in text
    assert "lesion L1" in text
    assert "3 of 3 cases shown." in text


def test_other_duplicates_come_least_alike_first_and_exact_last() -> None:
    audit = made(
        pairs=(
            pair("exact", fact("e1"), fact("e2")),
            pair("listed", fact("l1"), fact("l2"), similarity=None),
            pair("near", fact("n1"), fact("n2"), similarity=0.99),
            pair("near", fact("m1", fold=1), fact("m2", split=None), similarity=0.94),
            pair("near", fact("c1", "mel"), fact("c2", "nv")),
            pair("near", fact("s1", split="train"), fact("s2", split="test")),
            pair("near", fact("f1", fold=1), fact("f2", fold=2)),
        )
    )
    assert shown_photos(audit) == ["m1", "m2", "n1", "n2", "l1", "l2", "e1", "e2"]
    text = page_of(audit).text("duplicates")
    assert "4 of 4 pairs shown." in text
    assert text.index("0.940") < text.index("0.990") < text.index("listed by the data set") < text.index("the same file")


def test_what_stands_above_is_no_other_duplicate() -> None:
    audit = found()
    assert shown_photos(audit) == ["photo0", "photo1", "photo2", "photo3", "photo4", "photo5"]
    text = page_of(audit).text("duplicates")
    assert "1 of 1 pair shown." in text
    assert "photo4" in text
    assert "photo2" not in text


def test_a_pair_within_a_case_above_is_no_other_duplicate() -> None:
    photos = table(3, label=["nv", "nv", "mel"])
    audit = examine(photos, duplicates((0, 1, "near", 0.95), (0, 2, "near", 0.96)), [], [])
    assert page_of(audit).text("duplicates") == "Other duplicates None besides those above."


def test_classes_have_counts_and_shares_by_split() -> None:
    counts = {"train": {"mel": 1500, "nv": 500}, "test": {"mel": 10, "nv": 30}}
    page = page_of(made(photos=2040, class_counts=counts))
    text = page.text("classes")
    assert "Class train test all splits" in text
    assert "mel melanoma, in situ, invasive or metastatic 1,500 75.0 % 10 25.0 % 1,510 74.0 %" in text
    assert "all classes 2,000 98.0 % 40 2.0 % 2,040 100 %" in text
    assert [attributes.get("class") for attributes in page.named("span")].count("few") == 1


def test_sizes_gaps_and_unreadable_files() -> None:
    files = [{"image_id": f"photo{n}", "error_code": "truncated", "error_detail": f"ends at {n}"} for n in range(7)]
    audit = made(
        photos=1000,
        sizes={f"{600 + n}x450": 100 - n for n in range(9)},
        missing={"patient_id": 1.0, "age": 0.0002, "sex": 0.9999, "site": 0.0, "lesion_id": 0.125},
        unreadable=(*files, {"image_id": "odd", "error_code": "a new code", "error_detail": "why"}),
        counts={"unreadable": 8},
    )
    page = page_of(audit)
    text = page.text("files")
    assert "600 \N{MULTIPLICATION SIGN} 450 100 of 1,000 10.0 %" in text
    assert "608 \N{MULTIPLICATION SIGN} 450" not in text
    assert "other sizes 228 of 1,000 22.8 %" in text
    assert "patient 100 % age < 0.1 % sex > 99.9 % site on the body 0 % lesion 12.5 %" in text
    assert (
        "truncated ends before the photo does 7 photo0 ends at 0 photo1 ends at 1 photo2 ends at 2 a new code 1 odd why" in text
    )
    assert "8 files (0.8 %) could not be used" in page.text("top")


def test_shortcuts_above_the_mark_are_in_the_verdict() -> None:
    shortcuts = (Shortcut(feature="width_px", roc_auc=0.7123), Shortcut(feature="jpeg_quality", roc_auc=0.55))
    page = page_of(made(photos=100, shortcuts=shortcuts))
    assert "The file alone (width in pixels) tells malignant from benign with a ROC-AUC of 0.712." in page.text("top")
    assert "width in pixels 0.712 above 0.6 JPEG quality 0.550" in page.text("shortcuts")
    harmless = page_of(made(photos=100, shortcuts=shortcuts[1:], class_counts={"train": {"nv": 100}}))
    assert "No leaks found among 100 photos." in harmless.text("top")
    assert "The file alone" not in harmless.text("top")


def test_the_page_says_how_it_was_found_and_what_cannot_be() -> None:
    text = page_of(made()).text("method")
    for words in (
        "SHA-256",
        "perceptual hash",
        "quarter turns",
        "crops of more than about 2 %",
        "the first 2,000",
        "Counts are of all",
    ):
        assert words in text


def test_an_empty_audit_says_so_in_every_section() -> None:
    page = page_of(made())
    headings = [attributes["id"] for attributes in page.named("h2")]
    assert headings == ["leaks", "conflicts", "duplicates", "classes", "files", "shortcuts", "method"]
    for section in headings[:3]:
        assert "None" in page.text(str(section))
    assert "No photos." in page.text("classes")
    assert "Not measured" in page.text("shortcuts")
    assert {"class": "verdict doubt"} in page.named("div")


def hostile() -> Audit:
    ids = (f"a/{HOSTILE}1.jpg", f"a/{HOSTILE}2.jpg")
    photos = table(4, image_id=[*ids, "c", "d"], label=[HOSTILE, "nv", HOSTILE, HOSTILE], split=[HOSTILE, "test", "test", "test"])
    photos["lesion_id"] = photos["patient_id"] = HOSTILE
    unreadable = [{"image_id": HOSTILE, "error_code": HOSTILE, "error_detail": HOSTILE}]
    audit = examine(photos, duplicates((0, 1, "near", 0.95), (2, 3, "exact", 1.0)), unreadable, [])
    return audit.model_copy(update={"sizes": {HOSTILE: 4}, "shortcuts": (Shortcut(feature=HOSTILE, roc_auc=0.9),)})


def test_names_are_escaped() -> None:
    audit = hostile()
    thumbnails = dict.fromkeys(shown_photos(audit), THUMBNAIL)
    html = audit_page(audit, HOSTILE, thumbnails)
    page = Page(html)
    assert "<script" not in html
    assert not page.named("script")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for section in ("top", "leaks", "conflicts", "classes", "files", "shortcuts"):
        assert "<script>alert('x')</script>" in page.text(section)


def test_a_browser_is_told_to_load_and_run_nothing() -> None:
    policy = next(one["content"] for one in page_of(made()).named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_the_page_needs_no_network() -> None:
    audit = found()
    html = audit_page(audit, "https://example.org/data", dict.fromkeys(shown_photos(audit), THUMBNAIL))
    page = Page(html)
    addresses = [str(value) for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert {address for address in addresses if not address.startswith(("data:", "#"))} == set()
    assert "url(" not in html
    assert "@import" not in html
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "form"}


def test_links_lead_to_sections() -> None:
    page = page_of(found())
    there = {f"#{attributes['id']}" for attributes in page.named("h2")}
    assert {attributes["href"] for attributes in page.named("a")} <= there


@pytest.mark.parametrize("thumbnail", ["", "https://example.org/photo.jpg", "javascript:alert(1)"])
def test_a_photo_without_a_thumbnail_leaves_a_gap(thumbnail: str) -> None:
    audit = found()
    page = Page(audit_page(audit, "the/data", {"photo0": thumbnail, "photo1": THUMBNAIL}))
    assert [attributes["src"] for attributes in page.named("img")] == [THUMBNAIL]
    assert "cannot be shown" in page.text("leaks")


def test_a_folder_name_that_is_no_utf_8_can_be_written() -> None:
    audit_page(made(), "data\udcff", {}).encode()


def test_a_page_stays_small_however_much_was_found() -> None:
    leaks = [leak(kind, number, photos=50) for number in range(3000) for kind in ("patient", "lesion", "duplicates")]
    conflicts = [
        conflict("lesion", f"{n}", (f"class{n % 700}", "nv"), tuple(f"c{n}-{photo}" for photo in range(9))) for n in range(9000)
    ]
    pairs = [pair("near", fact(f"p{number}"), fact(f"q{number}"), similarity=0.95) for number in range(10_000)]
    classes = {f"class{number}": 5 for number in range(700)}
    audit = with_leaks(
        *leaks,
        conflicts=tuple(conflicts),
        pairs=tuple(pairs),
        class_counts={"train": classes, "test": classes},
        contradicted_photos=dict.fromkeys(classes, 3),
    )
    shown = shown_photos(audit)
    assert len(shown) == len(set(shown)) <= 240
    assert {name[0] for name in shown} >= {"p", "q", "c", "l", "d"}
    html = audit_page(audit, "the/data", dict.fromkeys(shown, THUMBNAIL))
    page = Page(html)
    assert len(page.named("img")) == len(shown)
    assert "676 rarer pairs of labels" in page.text("conflicts")
    assert len(html) < 1_000_000


def test_the_page_of_one_audit_is_always_the_same() -> None:
    audit = found()
    pages = {audit_page(audit, "the/data", dict.fromkeys(shown_photos(audit), THUMBNAIL)) for _ in range(2)}
    assert len(pages) == 1
    assert re.search(r"<!doctype html>\n<html lang=\"en\">", pages.pop())


def test_duplicates_under_two_lesion_ids_come_first_and_name_them() -> None:
    plain = pair("near", fact("plain1"), fact("plain2"), similarity=0.94)
    named = [fact("odd1").model_copy(update={"lesion_id": "L<1>"}), fact("odd2").model_copy(update={"lesion_id": "L2"})]
    odd = pair("near", *named, similarity=0.99).model_copy(update={"ids_differ": True})
    page = audit_page(made(pairs=(plain, odd), counts={"pairs_under_two_ids": 1}, photos=4), "data", {})
    assert page.index("lesion L&lt;1&gt; and L2") < page.index("odd1") < page.index("plain1")
    assert "1 duplicate pair stands under two lesion_ids or patient_ids" in page
