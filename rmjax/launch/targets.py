"""The targets by name: the registry, and the only place that imports them all."""

from rmjax.launch.gke import GKE
from rmjax.launch.host import HOST
from rmjax.launch.mig import MIG
from rmjax.launch.queued import QUEUED
from rmjax.launch.sky import SKY
from rmjax.launch.slurm import SLURM
from rmjax.launch.target import Target

ALL: dict[str, Target] = {target.name: target for target in (HOST, SLURM, GKE, QUEUED, MIG, SKY)}
