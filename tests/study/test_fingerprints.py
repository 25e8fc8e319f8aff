"""What of a config is taken for data: files, sets and models of the hub by their names, and what only looks like a path."""

import pytest
from ml_collections import ConfigDict

from rmjax.study.cells import Cell
from rmjax.study.fingerprints import absent, fingerprint


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a file of `acme/NAME` into huggingface_hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(kind, name, file, text):
        repo = tmp_path / "hub" / f"{kind}--acme--{name}"
        path = repo / "snapshots" / ("1" * 40) / file
        for part, content in ((repo / "refs/main", "1" * 40), (path, text)):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(content)

    return put


def of(**values):
    return Cell("c", {}, ConfigDict(values))


def data_of(made, workdir):
    return fingerprint(made, {}, workdir, "")["data"]


def test_a_set_of_the_hub_counts_by_its_files(hub, tmp_path):
    made = of(data={"path": "hf:acme/prefs"})
    assert absent(made, tmp_path) == [
        "config.data.path=hf:acme/prefs is not there; run `hf download --repo-type dataset acme/prefs "
        "--include '*.parquet' --include README.md`"
    ]
    assert data_of(made, tmp_path) == {"data.path": None}
    found = []
    for text in ("one", "another"):
        hub("datasets", "prefs", "data/train-00000-of-00002.parquet", text)
        hub("datasets", "prefs", "data/train-00001-of-00002.parquet", "two")
        hub("datasets", "prefs", "data/test-00000-of-00001.parquet", text * 2)
        assert absent(made, tmp_path) == []
        found.append(data_of(made, tmp_path)["data.path"])
    hub("datasets", "prefs", "data/test-00000-of-00001.parquet", "of another split")
    assert found[0] != found[1] == data_of(made, tmp_path)["data.path"]


def test_a_set_of_the_hub_that_is_not_named_whole_is_refused(hub, tmp_path):
    hub("datasets", "prefs", "en/train.parquet", "one")
    hub("datasets", "prefs", "de/train.parquet", "one")
    with pytest.raises(ValueError, match=r"c: config\.data\.path: .*several configs, de, en; name one"):
        absent(of(data={"path": "hf:acme/prefs"}), tmp_path)


def test_a_model_of_the_hub_counts_by_its_folder(hub, tmp_path):
    made = of(model={"init": "acme/rm"})
    (said,) = absent(made, tmp_path)
    assert said.startswith(
        "config.model.init=acme/rm is not there; correct the path; as a model of the hub it is not in"
    )
    assert "`hf download acme/rm" in said
    hub("models", "rm", "config.json", "{}")
    assert absent(made, tmp_path) == []
    before = data_of(made, tmp_path)
    hub("models", "rm", "config.json", "{ }")
    assert before["model.init"] and before != data_of(made, tmp_path)


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}</s>", "{% for m in messages %}{{ m }}</s>{% endfor %}", "chatml"]
)
def test_a_template_s_own_text_is_no_path(template, tmp_path):
    made = of(format={"template": template})
    assert absent(made, tmp_path) == [] and data_of(made, tmp_path) == {}
    (tmp_path / "t.jinja").write_text(template)
    assert data_of(of(format={"template": str(tmp_path / "t.jinja")}), tmp_path)["format.template"]
