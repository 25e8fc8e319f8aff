"""A v6e slice of 16 chips as an instance group of Compute Engine, for two days by flex-start."""

import dataclasses

from launch import queued
from rmjax.launch.spec import JobSpec


def get_spec() -> JobSpec:
    return dataclasses.replace(
        queued.get_spec(), target="mig", provisioning="flex", max_hours=48, project="my-project", zone="us-east5-b"
    )
