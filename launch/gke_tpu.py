"""Two v6e slices of 16 chips on GKE, spot."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="gke",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=32", "--config.data.streams=8", "--config.mesh.dcn_data=2", "--config.mesh.data=1",
            "--config.mesh.fsdp=-1",
        ),
        workdir="/bucket/runs/polar",
        tpu="v6e",
        topology="4x4",
        slices=2,
        provisioning="spot",
        image="REGION-docker.pkg.dev/PROJECT/images/rmjax:tpu",  # packages of rmjax[tpu]; the code comes from the bucket
        bucket="my-bucket",
        mount="/bucket",
        cluster="",  # kubectl's context, so that the job cannot go to another cluster
        service_account="rmjax",
    )  # fmt: skip
