"""What queued resources and instance groups have in common: a script that a TPU VM runs at every boot."""

from rmjax.launch import shell
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import Stored

SCRIPT = "startup.sh"
_CODE, _ATTEMPT = "/opt/rmjax-code", "/opt/rmjax-attempt.sh"
# Source: docs.cloud.google.com/storage/docs/cloud-storage-fuse/install, read in November 2026.
_GCSFUSE = """\
if ! command -v gcsfuse > /dev/null; then
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc
  source="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $source" > /etc/apt/sources.list.d/gcsfuse.list
  apt-get update
  apt-get install -y gcsfuse
fi
"""


def log(spec: JobSpec) -> str:
    """The file on each VM that has the output."""
    return f"/var/log/{spec.name}.log"


def startup(spec: JobSpec, stored: Stored) -> str:
    """The script, as root: keeps the command going. Mounting, unpacking and setting up belong to an attempt, so that a
    network that fails once is a failure among others."""
    several = "export RMJAX_COORDINATOR=auto\n" if spec.all_hosts > 1 else ""
    return f"""\
{shell.header(spec, stored, "what a TPU VM runs at every boot")}{shell.STRICT}exec >> {log(spec)} 2>&1
export HOME=/root
{shell.exports(shell.variables(spec))}{several}
cat > {_ATTEMPT} << 'END_OF_ATTEMPT'
{shell.STRICT}{_GCSFUSE}mkdir -p {spec.mount}
mountpoint -q {spec.mount} || gcsfuse --implicit-dirs {spec.bucket} {spec.mount}
{shell.unpacked(spec, stored, _CODE)}{shell.setup(spec)}exec {shell.command(spec)}
END_OF_ATTEMPT

attempt() {{
  bash {_ATTEMPT}
}}

{shell.supervised(spec)}"""
