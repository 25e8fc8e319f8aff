"""Files that are whole or as they were."""

import errno
import os

import pytest

from rmjax.train import manifest


def test_a_full_disk_names_the_file_and_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    manifest.write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest.os, "fsync", full)
    with pytest.raises(OSError, match=rf"cannot write \(No space left on device\): '{path}'") as caught:
        manifest.write_text(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    monkeypatch.undo()
    manifest.write_text(path, "new")
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["config.json"]
