"""The ready specs of launch/ as tests ask for them, and a small one of each target."""

import re
from pathlib import Path

from rmjax.launch.spec import JobSpec, changed, checked, load
from rmjax.launch.target import Stored
from rmjax.launch.targets import ALL

ROOT = Path(__file__).parents[2]
READY = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))
ID = "0123456789ab"
COMMAND = ("python3", "run.py", "{workdir}")
_CLOUD = {"bucket": "my-bucket", "mount": "/bucket", "workdir": "/bucket/runs/x"}
_TPU = {"tpu": "v6e", "topology": "4x4", "zone": "us-east5-b", "project": "p"}
SMALL = {
    "host": {"gpus": 4, "processes": 2},
    "slurm": {"gpus": 8, "hosts": 2},
    "gke": {**_CLOUD, "image": "i", "gpus": 8, "gpu": "nvidia-h100-80gb", "hosts": 2},
    "queued": {**_CLOUD, **_TPU},
    "mig": {**_CLOUD, **_TPU},
    "sky": {**_CLOUD, "gpus": 8, "gpu": "H100", "hosts": 2},
}


def ready(name: str) -> JobSpec:
    """A spec of launch/, with an owner."""
    return checked(changed(load(ROOT / "launch" / f"{name}.py"), ["owner=ada"]))


def small(target: str, **changes) -> JobSpec:
    values = {"target": target, "owner": "ada", "run": "x", "command": COMMAND, "workdir": "/shared/runs/x"}
    return JobSpec(**(values | SMALL[target] | changes))


def stored(spec: JobSpec) -> Stored:
    folder = f"/records/{spec.name}/{ID}" if ALL[spec.target].uploads else f"{spec.workdir}/launch/{ID}"
    return Stored(ID, folder)


def texts() -> list[tuple[str, str]]:
    """(what it is, text) of every shell script that a ready or a small spec becomes, those inside YAML too."""
    found = []
    for name, spec in [*((name, ready(name)) for name in READY), *((f"small {t}", small(t)) for t in ALL)]:
        for file, text in ALL[spec.target].files(spec, stored(spec)).items():
            found += [(f"{name} {file}", text)] if file.endswith(".sh") else _inside(f"{name} {file}", text)
    attempts = [
        (f"{name} attempt", "#!/usr/bin/env bash" + ATTEMPT.search(text)[1])
        for name, text in found
        if "startup" in name
    ]
    return found + attempts


ATTEMPT = re.compile(r"<< 'END_OF_ATTEMPT'(.*)END_OF_ATTEMPT\n", re.DOTALL)


def _inside(name: str, text: str) -> list[tuple[str, str]]:
    import yaml

    task = yaml.safe_load(text)
    if "run" in task:
        return [(f"{name} {part}", "#!/usr/bin/env bash\n" + task[part]) for part in ("setup", "run") if part in task]
    pod = task["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return [(name, "#!/usr/bin/env bash\n" + pod["containers"][0]["command"][2])]
