"""What is changed, added or taken away after it was published is found; what is as it was is not."""

import datetime
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from skinray import outputs, storage
from skinray.audit_chain import ChainReport, check_chain, described_file, previous_run
from skinray.cli import main
from skinray.errors import StorageError
from skinray.published_runs import KIND


def publish(output: Path, night: int, previous: dict[str, str] | None) -> Path:
    """A run as scoring leaves it."""
    folder = output / "model_id=abc" / f"scored_date=2026-11-{night:02d}" / f"run_id={night:02d}"
    folder.mkdir(parents=True)
    (folder / "part-00000.parquet").write_bytes(f"scores of night {night}".encode())
    (folder / "_ledger.pq").write_bytes(f"ledger of night {night}".encode())
    (folder / "_progress.json").write_text("{}")
    manifest = {
        "kind": KIND,
        "model_id": "abc",
        "started_at": datetime.datetime(2026, 11, night, tzinfo=datetime.UTC).isoformat(),
        "rows": 10,
        "files": [described_file(str(folder), "part-00000.parquet")],
        "records": [described_file(str(folder), "_ledger.pq")],
        "previous": previous,
        "published_at": datetime.datetime(2026, 11, night, tzinfo=datetime.UTC).isoformat(),
    }
    outputs.publish_folder(str(folder), manifest)
    return folder


def nights(output: Path, count: int = 3) -> list[Path]:
    """Their manifests, the oldest first."""
    return [publish(output, night, previous_run(str(output))) / storage.MANIFEST_NAME for night in range(1, count + 1)]


def test_an_untouched_chain_is_whole_and_names_its_head(tmp_path: Path) -> None:
    manifests = nights(tmp_path)
    newest = storage.sha256_of(manifests[-1].read_bytes())
    report = check_chain(str(tmp_path))
    assert report == ChainReport(runs=3, rows=30, files=6, heads=(newest,), problems=(), notes=())
    publish(tmp_path, 4, previous_run(str(tmp_path)))
    assert check_chain(str(tmp_path), head=newest).problems == (), "an older head is part of it"


@pytest.mark.parametrize("night", [0, 1, 2])
@pytest.mark.parametrize("name", ["part-00000.parquet", "_ledger.pq"])
def test_a_changed_file_is_named(tmp_path: Path, night: int, name: str) -> None:
    folder = nights(tmp_path)[night].parent
    (folder / name).write_bytes((folder / name).read_bytes()[::-1])
    [problem] = check_chain(str(tmp_path)).problems
    assert problem == f"{folder.relative_to(tmp_path)}/{name} was changed"


def test_files_that_were_added_or_taken_away_are_named(tmp_path: Path) -> None:
    folder = nights(tmp_path)[1].parent
    (folder / "part-00001.parquet").write_bytes(b"more scores")
    (folder / "part-00000.parquet").unlink()
    first, second = check_chain(str(tmp_path)).problems
    assert first.endswith("part-00000.parquet is missing")
    assert second.endswith("part-00001.parquet was added")


def test_what_a_kill_at_the_very_end_leaves_is_nothing_that_was_added(tmp_path: Path) -> None:
    folder = nights(tmp_path)[1].parent
    (folder / storage.INCOMPLETE_NAME).write_text("{}")
    (folder / "_blocks").mkdir()
    (folder / "_blocks" / "000000000000.block").write_bytes(b"rows")
    assert check_chain(str(tmp_path)).problems == ()


def test_a_changed_manifest_breaks_the_run_that_follows(tmp_path: Path) -> None:
    manifests = nights(tmp_path)
    head = storage.sha256_of(manifests[-1].read_bytes())
    manifests[1].write_text(manifests[1].read_text().replace('"rows": 10', '"rows": 11'))
    [problem] = check_chain(str(tmp_path)).problems
    assert "run_id=03 follows" in problem
    manifests[2].write_text(manifests[2].read_text().replace('"rows": 10', '"rows": 12'))
    assert any(head in problem for problem in check_chain(str(tmp_path), head).problems), "the newest is held by its head alone"


@pytest.mark.parametrize("night", [0, 1, 2])
def test_a_run_that_was_taken_away_is_missed(tmp_path: Path, night: int) -> None:
    manifests = nights(tmp_path)
    head = storage.sha256_of(manifests[-1].read_bytes())
    storage.delete_folder(str(manifests[night].parent))
    assert check_chain(str(tmp_path), head).problems


def test_two_runs_published_at_once_are_told_and_break_nothing(tmp_path: Path) -> None:
    nights(tmp_path, 1)
    before = previous_run(str(tmp_path))
    publish(tmp_path, 2, before)
    publish(tmp_path, 3, before)
    report = check_chain(str(tmp_path))
    assert report.problems == ()
    assert len(report.notes) == 1
    assert len(report.heads) == 2


def test_runs_that_name_none_before_them_are_not_believed(tmp_path: Path) -> None:
    publish(tmp_path, 1, None)
    publish(tmp_path, 2, None)
    assert "2 runs name none before them" in check_chain(str(tmp_path)).problems[0]


def test_where_nothing_is_published_nothing_is_whole(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no published scoring run"):
        check_chain(str(tmp_path))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_changed_byte_of_any_audited_file_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    output = tmp_path_factory.mktemp("chain")
    manifests = nights(output)
    head = storage.sha256_of(manifests[-1].read_bytes())
    audited = sorted(path for path in output.rglob("*") if path.is_file() and path.name != "_progress.json")
    path = data.draw(st.sampled_from(audited))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    path.write_bytes(bytes(content))
    assert check_chain(str(output), head).problems


def test_the_command_says_what_is_broken_and_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = nights(tmp_path)
    asked = ["verify", "audit", "--predictions", str(tmp_path)]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert f"head {storage.sha256_of(manifests[-1].read_bytes())}" in out
    content: dict[str, Any] = json.loads(manifests[0].read_text())
    manifests[0].write_text(json.dumps({**content, "rows": 5}))
    assert main(asked) == 3
    assert "BROKEN" in capsys.readouterr().err
    assert main(["verify", "audit"]) == 2
    assert "belong together" in capsys.readouterr().err
