"""What is entered is on the disk, counts only for the same work, and survives a torn last line."""

import errno
from pathlib import Path

import pytest

from hf_prune.journal import Journal
from hf_prune.moving import Span

SPANS = [Span("a", i * 10, 10, "target", i * 10) for i in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").write_bytes(bytes(200))
    return tmp_path


def entered(folder: Path, key: str = "key") -> list[Span]:
    journal = Journal(folder / "journal", folder, key)
    return [span for span in SPANS if span in journal]


def test_all_that_was_added_is_entered(folder: Path) -> None:
    with Journal(folder / "journal", folder, "key") as journal:
        for span in SPANS[:7]:
            journal.add(span)
    assert entered(folder) == SPANS[:7]
    assert entered(folder, "another") == []
    with Journal(folder / "journal", folder, "key") as journal:
        assert journal.begun and SPANS[3] in journal and SPANS[8] not in journal
        for span in SPANS[7:]:
            journal.add(span)
    assert entered(folder) == SPANS


def test_what_was_done_before_an_error_is_entered(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(folder / "journal", folder, "key") as journal:
        journal.add(SPANS[0])
        journal.add(SPANS[1])
        raise KeyboardInterrupt
    assert entered(folder) == SPANS[:2]


def test_a_torn_line_counts_for_nothing_and_is_mended(folder: Path) -> None:
    with Journal(folder / "journal", folder, "key") as journal:
        journal.add(SPANS[0])
    with (folder / "journal").open("a") as file:
        file.write('[["target", 10, 1')
    assert entered(folder) == SPANS[:1]
    with Journal(folder / "journal", folder, "key") as journal:
        journal.add(SPANS[5])
    assert entered(folder) == [SPANS[0], SPANS[5]]


def test_forgotten(folder: Path) -> None:
    with Journal(folder / "journal", folder, "key") as journal:
        journal.add(SPANS[0])
    journal = Journal(folder / "journal", folder, "key")
    journal.forget()
    assert not journal.begun and not (folder / "journal").exists()


def test_without_a_file_nothing_is_left(folder: Path) -> None:
    with Journal(None, folder, "key") as journal:
        journal.add(SPANS[0])
    assert [path.name for path in folder.iterdir()] == ["target"]


def test_a_disk_that_cannot_keep_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("hf_prune.journal._sync", broken)
    with pytest.raises(OSError, match="broken disk"), Journal(folder / "journal", folder, "key") as journal:
        for span in SPANS:
            journal.add(span)
    assert entered(folder) == []
