"""What paths may be."""

import json
from pathlib import Path

import pytest

from rmjax.data.readers import open_records
from rmjax.files import append_line, refuse_unwritable, refuse_url, whole_lines, write_text


@pytest.mark.parametrize("use", [refuse_unwritable, lambda path: write_text(path, "x"), open_records, refuse_url])
@pytest.mark.parametrize("url", ["gs://bucket/f.jsonl", "s3://bucket/f.jsonl", "https://host/f.jsonl"])
def test_a_url_is_refused_and_makes_no_folder(tmp_path, monkeypatch, use, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{url} is a URL; mount the bucket .* or give a local folder"):
        use(Path(url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/a", "/runs/a:b", "C:/runs", "a:b", "tfds:name:train@/data"])
def test_a_path_with_a_colon_is_no_url(path):
    refuse_url(path)


@pytest.mark.parametrize("lost", [0, 1, 2, 8, 1000])
def test_a_part_of_a_line_is_cut_off(tmp_path, lost):
    path, rows = tmp_path / "f.jsonl", [{"a": "é\u2028\n"}, {"b": 1}, {"c": "🎉\u0085"}]
    for row in rows:
        append_line(path, row)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - lost)])
    found = whole_lines(path)
    assert [json.loads(line) for line in found] == rows[: len(found)] and len(found) == {0: 3, 1000: 0}.get(lost, 2)
    for row in rows[len(found) :]:
        append_line(path, row)
    assert path.read_bytes() == data and whole_lines(tmp_path / "absent") == []


def test_a_line_on_a_full_disk_names_the_file():
    with pytest.raises(OSError, match=r"cannot write \(No space left on device\): '/dev/full'"):
        append_line(Path("/dev/full"), {})
