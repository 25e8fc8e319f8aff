"""What paths may be."""

from pathlib import Path

import pytest

from rmjax.data.readers import open_records
from rmjax.files import refuse_unwritable, refuse_url, write_text


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
