"""Four nodes of 8 GPUs in allocations of a day: one process a node, which sees all of its GPUs."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="slurm",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=32", "--config.data.streams=4", "--config.mesh.fsdp=8",
        ),
        workdir="/shared/runs/polar",
        setup=("source /shared/rmjax/.venv/bin/activate",),
        gpus=8,
        hosts=4,
        cores=64,
        slot_hours=24,
        grace_seconds=300,
        partition="gpu",
        account="",
        options=(),  # such as ("--qos=long", "--constraint=h100")
    )  # fmt: skip
