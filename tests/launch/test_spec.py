"""What a spec may say, whom it asks, and what its name may be."""

import dataclasses

import pytest

from rmjax.launch import tpus
from rmjax.launch.spec import JobSpec, changed, checked, load
from rmjax.launch.target import _DEMANDS, _PLACES, check_for, unused
from rmjax.launch.targets import ALL
from tests.launch.examples import READY, ready, small, stored


@pytest.mark.parametrize("name", READY)
def test_every_ready_spec_is_right(name):
    spec = ready(name)
    check_for(ALL[spec.target], spec)
    assert spec.name == "ada-polar"


def test_every_target_has_a_ready_spec():
    assert {ready(name).target for name in READY} == set(ALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"owner": "Ada"}, "spec.owner is 'Ada'; it must be small letters and digits"),
        ({"owner": "a-b"}, "spec.owner"),
        ({"run": "x_1"}, "spec.run is 'x_1'; it must be small letters, digits and hyphens"),
        ({"run": "x-"}, "spec.run"),
        ({"command": ()}, "spec.command is empty"),
        ({"command": ("true",)}, r"spec.command does not have \{workdir\}"),
        ({"workdir": "runs/x"}, "spec.workdir is 'runs/x'; it must be an absolute path"),
        ({"workdir": "/a b"}, "spec.workdir"),
        ({"workdir": "gs://a/b"}, "spec.workdir=gs://a/b is a URL"),
        ({"retries": -1}, "spec.retries is -1; it must be 0 or more"),
        ({"hosts": 0}, "spec.hosts is 0"),
        ({"gpus": 8, "processes": 3}, "spec.processes is 3; it must divide spec.gpus, 8"),
        ({"gpus": "8"}, "spec.gpus is '8'; it must be an integer"),
        ({"gpu": "H100", "gpus": 0}, "spec.gpu is 'H100' and spec.gpus is 0"),
        ({"topology": "4x4"}, "spec.tpu is empty"),
        ({"tpu": "v9", "topology": "4x4"}, "spec.tpu is 'v9'; choose"),
        (
            {"gpus": 0, "processes": 1, "tpu": "v6e", "topology": "4x4x4"},
            "spec.topology is '4x4x4'; a slice of v6e has 2 axes",
        ),
        ({"gpus": 0, "processes": 1, "tpu": "v6e", "topology": "3x5"}, "spec.topology is '3x5', 15 chips"),
        ({"tpu": "v6e", "topology": "4x4"}, "spec.gpus is 4 beside spec.tpu"),
        ({"gpus": 0, "tpu": "v6e", "topology": "4x4"}, "follow from spec.topology"),
        ({"bucket": "b"}, "spec.mount is ''; give both or none"),
        ({"bucket": "gs://b", "mount": "/shared"}, "spec.bucket is 'gs://b'"),
        ({"bucket": "bucket", "mount": "/b"}, "spec.workdir is '/shared/runs/x'; it must lie below spec.mount, '/b'"),
        ({"environment": ("A",)}, "spec.environment is 'A'"),
        ({"environment": ("RMJAX_PROCESSES=3",)}, "which the target sets"),
        ({"provisioning": "free"}, "spec.provisioning is 'free'; choose on-demand"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(small("host", **changes))


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ("host", {"slot_hours": 3.0}, "spec.slot_hours is 3.0, which target host cannot do; leave it out"),
        ("host", {"hosts": 2}, "spec.hosts is 2, which target host cannot do"),
        ("slurm", {"provisioning": "spot"}, "spec.provisioning is 'spot', which target slurm cannot do"),
        ("slurm", {"max_hours": 3.0}, "spec.max_hours"),
        ("gke", {"image": ""}, "spec.image is empty, and gke needs it"),
        ("gke", {"gpu": ""}, "spec.gpu is empty; name the model"),
        ("gke", {"gpus": 8, "processes": 8}, "spec.processes is 8, which target gke cannot do"),
        ("gke", {"provisioning": "reserved"}, "spec.reservation is empty; name the reservation"),
        ("queued", {"tpu": "tpu7x", "topology": "4x4x4"}, "the Cloud TPU API does not have; use target gke or mig"),
        ("queued", {"provisioning": "flex"}, "'flex'; queued resources have"),
        ("queued", {"zone": ""}, "spec.zone is empty"),
        ("mig", {"slices": 2}, "spec.slices is 2, which target mig cannot do"),
        ("mig", {"provisioning": "flex"}, "spec.max_hours is 0"),
        ("mig", {"tpu": "tpu7x", "topology": "4x4x4"}, "spec.vm_image is empty; name the image family for tpu7x"),
        (
            "sky",
            {"gpus": 0, "gpu": "", "hosts": 1, "tpu": "v6e", "topology": "4x4"},
            "target sky takes one TPU host, so use gke",
        ),
        *(
            (name, {"run": "x" * (ALL[name].longest - 3)}, "spec.run makes the job's name .*shorten it by 1$")
            for name in ALL
        ),
    ],
)
def test_what_a_target_cannot_do_is_said(target, changes, message):
    spec = checked(small(target, **changes))
    with pytest.raises(ValueError, match=message):
        check_for(ALL[target], spec)


@pytest.mark.parametrize("target", ALL)
def test_the_longest_name_is_taken(target):
    spec = small(target, run="x" * (ALL[target].longest - 4))
    check_for(ALL[target], checked(spec))
    if target == "gke":  # with the suffixes that Kubernetes appends
        assert len(f"{spec.name}-w-999-9999-xxxxx") == 63


def test_no_two_jobs_have_one_name():
    """An owner has no hyphen, so a-b can only be run b of a."""
    with pytest.raises(ValueError, match="spec.owner"):
        checked(small("host", owner="a-b", run="c"))


def test_values_are_changed_by_name():
    spec = changed(small("host"), ["run=y", "retries=7", "max_hours=1.5", "setup=true false"], ["--more"])
    assert (spec.run, spec.retries, spec.max_hours, spec.setup) == ("y", 7, 1.5, ("true", "false"))
    assert spec.command[-1] == "--more"


@pytest.mark.parametrize(
    ("text", "message"),
    [("retrys=3", "did you mean `retries`"), ("retries", "--set=retries"), ("retries=many", "retries must be int")],
)
def test_an_unknown_field_or_a_wrong_value_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        changed(small("host"), [text])


@pytest.mark.parametrize("text", ["", "def get_spec():\n    return {}\n"])
def test_a_file_without_a_spec_is_said(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError, match="returns no JobSpec"):
        load(tmp_path / "a.py")
    with pytest.raises(FileNotFoundError, match="is no file; name a spec"):
        load(tmp_path / "b.py")


@pytest.mark.parametrize(
    ("tpu", "topology", "hosts", "devices", "machine", "queue"),
    [
        ("v5e", "1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5e", "2x4", 1, 8, "ct5lp-hightpu-8t", "v5litepod-8"),
        ("v5e", "4x4", 4, 16, "ct5lp-hightpu-4t", "v5litepod-16"),
        ("v5p", "2x2x1", 1, 4, "ct5p-hightpu-4t", "v5p-8"),
        ("v5p", "4x4x4", 16, 64, "ct5p-hightpu-4t", "v5p-128"),
        ("v6e", "16x16", 64, 256, "ct6e-standard-4t", "v6e-256"),
    ],
)
def test_slices_have_their_hosts_and_names(tpu, topology, hosts, devices, machine, queue):
    assert tpus.hosts(tpu, topology) == hosts
    assert tpus.devices(tpu, topology) == devices
    assert tpus.machine(tpu, topology) == machine
    assert tpus.queued_type(tpu, topology) == queue


def test_a_chip_of_tpu7x_is_two_devices():
    assert tpus.devices("tpu7x", "2x2x1") == 8 and tpus.hosts("tpu7x", "4x4x4") == 16


def test_several_slices_of_the_queue_have_a_prefix():
    [create] = ALL["queued"].submit(small("queued", slices=3), stored(small("queued", slices=3)))
    assert {"--node-count=3", "--node-prefix=ada-x"} <= set(create) and "--node-id=ada-x" not in create


def test_every_field_is_of_all_targets_or_of_some():
    """A field in no list would be dropped in silence by a target that has no use for it."""
    for_all = {
        "target", "owner", "run", "command", "workdir", "setup", "environment", "retries", "grace_seconds", "topology", "mount",
    }  # fmt: skip
    listed = {*_DEMANDS, *_PLACES}
    assert {field.name for field in dataclasses.fields(JobSpec)} == for_all | listed
    assert listed == {field for target in ALL.values() for field in target.honors}


def test_a_place_of_another_target_is_said():
    assert unused(ALL["slurm"], small("slurm", zone="z", partition="p")) == ["zone"]
