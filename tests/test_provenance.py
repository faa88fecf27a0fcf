"""Whatever cannot be found out about the code is left open; it never costs a run that is done."""

from pathlib import Path

import pytest

import skinray
from skinray.provenance import code_commit


def test_a_checkout_where_git_is_not_installed_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "skinray").mkdir()
    monkeypatch.setattr(skinray, "__file__", str(tmp_path / "skinray" / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SKINRAY_COMMIT", raising=False)
    assert code_commit() is None
    monkeypatch.setenv("SKINRAY_COMMIT", "abc")
    assert code_commit() == "abc"
