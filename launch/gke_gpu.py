"""Two hosts of 8 H100 on GKE."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="gke",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=16", "--config.data.streams=2", "--config.mesh.fsdp=8",
        ),
        workdir="/bucket/runs/polar",
        gpu="nvidia-h100-80gb",
        gpus=8,
        hosts=2,
        image="REGION-docker.pkg.dev/PROJECT/images/rmjax:cuda",
        bucket="my-bucket",
        mount="/bucket",
        service_account="rmjax",
        max_hours=72,
    )  # fmt: skip
