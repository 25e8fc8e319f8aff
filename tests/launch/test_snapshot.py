"""What a snapshot of the code has, and what of a command it lacks."""

import io
import tarfile

import pytest

import rmjax
from rmjax.launch import snapshot
from tests.launch.examples import small


def names(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_it_has_what_git_tracks_as_it_is_now(checkout):
    taken = snapshot.take(checkout)
    assert names(taken.archive) == {".gitignore": b"*.log\n", "run.py": b"print('changed')\n"}
    assert taken.untracked == ("new.py",) and len(taken.commit) == 40 and "+print('changed')" in taken.patch


def test_equal_code_and_spec_have_one_id_and_others_have_another(checkout):
    spec = small("slurm")
    first = snapshot.take(checkout)
    (checkout / "run.py").touch()
    assert snapshot.take(checkout).id(spec) == first.id(spec) != first.id(small("slurm", retries=9))
    (checkout / "run.py").write_text("print('other')\n")
    assert snapshot.take(checkout).id(spec) != first.id(spec)


def test_a_file_that_was_deleted_is_left_out(checkout):
    (checkout / "run.py").unlink()
    assert set(names(snapshot.take(checkout).archive)) == {".gitignore"}


def test_outside_a_checkout_it_is_the_installed_version(tmp_path):
    assert snapshot.take(tmp_path) == snapshot.Snapshot(rmjax.__version__)


@pytest.mark.parametrize("argument", ["--config=new.py:small", "new.py", "--init=runs/a", "--log=ignored.log"])
def test_what_the_job_would_not_find_is_said(checkout, argument):
    (checkout / "runs/a").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="spec.command names .*, which git does not track, .* git add it, or give an absolute path"
    ):
        snapshot.check_files(small("slurm", command=("python", argument)), snapshot.take(checkout), checkout)


@pytest.mark.parametrize(
    "argument", ["--config=run.py:small", "./run.py", "--init=smollm2", "--config=shipped:pool", "/etc/hosts", "-m"]
)
def test_what_the_job_finds_or_nobody_has_passes(checkout, argument):
    snapshot.check_files(small("slurm", command=("python", argument)), snapshot.take(checkout), checkout)
