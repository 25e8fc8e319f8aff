"""This machine, with one process for each of its 8 GPUs."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="host",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=8", "--config.data.streams=8",  # a stream for each process
        ),
        workdir="/data/runs/polar",
        setup=("source /data/rmjax/.venv/bin/activate",),
        gpus=8,
        processes=8,
    )  # fmt: skip
