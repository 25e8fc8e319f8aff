"""One machine with any number of GPUs, or none: a script that starts the processes, keeps them going and stops them."""

from collections.abc import Mapping

from rmjax.launch import shell
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import Command, Stored, Target

SCRIPT = "host.sh"


def _files(spec: JobSpec, stored: Stored) -> Mapping[str, str]:
    return {SCRIPT: _script(spec, stored)}


def _script(spec: JobSpec, stored: Stored) -> str:
    here = stored.seen(spec)
    return f"""\
{shell.header(spec, stored, "bash host.sh start | run | status | stop")}{shell.STRICT}
here={here}
lock={spec.workdir}/launch/lock # held by every process of the run
group={spec.workdir}/launch/group # its process group; holds as long as the lock is held

running() {{
  [[ -e $lock ]] && ! flock --shared --nonblock "$lock" true
}}

{_attempt(spec, stored)}
run() {{
  exec 9> "$lock"
  flock --timeout 5 9 || {{ # who asks for the status holds it for a moment
    echo "{spec.name} is running already" >&2
    exit 1
  }}
  echo $$ > "$group"
  {_indented(shell.FORGET + shell.exports(shell.variables(spec)) + shell.into_code(stored, f"{here}/code") + shell.setup(spec))}
  {_indented(shell.supervised(spec))}
}}

case "${{1:-}}" in
  start)
    setsid nohup bash "$here/{SCRIPT}" run >> "$here/supervisor.log" 2>&1 < /dev/null &
    while kill -0 $! 2> /dev/null && ! running; do sleep 0.1; done
    ;;
  run) run ;;
  status)
    if running; then
      echo "{spec.name} RUNNING group $(cat "$group")"
    else
      echo "{spec.name} ENDED $(tail -n 1 "$here/supervisor.log" 2> /dev/null)"
    fi
    ;;
  stop)
    if running; then kill -TERM -- "-$(cat "$group")"; fi
    ;;
  *)
    echo "bash {SCRIPT} start | run | status | stop" >&2
    exit 2
    ;;
esac
"""


def _indented(text: str) -> str:
    return "\n  ".join(text.rstrip("\n").split("\n"))


def _attempt(spec: JobSpec, stored: Stored) -> str:
    """The function that starts the processes and gives 0 where all are finished, the code of a failure, or STOPPED."""
    if spec.processes == 1:
        return f'attempt() {{\n  {shell.command(spec)} >> "$here/process-0.log" 2>&1\n}}\n'
    each = spec.gpus // spec.processes
    visible = (
        f'    devices=$(seq --separator=, $((i * {each})) $((i * {each} + {each - 1})))\n    CUDA_VISIBLE_DEVICES="$devices" '
        if each
        else "    "
    )
    return f"""\
attempt() {{
  local pids=() status=0 code port i{" devices" if each else ""}
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  for ((i = 0; i < {spec.processes}; i++)); do
{visible}RMJAX_COORDINATOR="localhost:$port" RMJAX_PROCESSES={spec.processes} RMJAX_PROCESS=$i \\
      {shell.command(spec)} >> "$here/process-$i.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${{pids[@]}}"; do
    code=0
    wait "$pid" || code=$?
    while kill -0 "$pid" 2> /dev/null; do # a signal came first
      code=0
      wait "$pid" || code=$?
    done
    if ((code != 0 && (status == 0 || status == {shell.STOPPED}))); then status=$code; fi
  done
  return "$status"
}}
"""


def _submit(spec: JobSpec, stored: Stored) -> tuple[Command, ...]:
    return (("bash", f"{stored.folder}/{SCRIPT}", "start"),)


def _latest(spec: JobSpec, action: str) -> Command:
    script = f"{spec.workdir}/launch/latest/{SCRIPT}"
    return ("bash", "-c", f'if [ -e "$0" ]; then bash "$0" {action}; fi', script)


def _find(spec: JobSpec) -> Command:
    return _latest(spec, "status")


def _cancel(spec: JobSpec) -> tuple[Command, ...]:
    return (_latest(spec, "stop"),)


HOST = Target(
    name="host",
    tools=("bash", "flock", "setsid"),
    longest=100,
    honors=frozenset({"gpus", "processes", "max_hours", "pause_seconds"}),
    files=_files,
    submit=_submit,
    find=_find,
    cancel=_cancel,
    over=frozenset({"ENDED"}),
    logs=lambda spec, id: f"tail -F {spec.workdir}/launch/{id or 'latest'}/*.log",
)
