"""Trainers of another environment with our server as their reward: `python -m tests.serve.parity --peer=PYTHON` (`make parity`).

A step of TRL's GRPO on a CPU, its rewards compared with those of the model itself.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def grpo(peer: str, folder: Path) -> float:
    """The largest difference between the rewards that TRL got and the model's own. AssertionError where nothing was learned."""
    from rmjax.serve.engine import Engine
    from tests.serve.conftest import make_model, running

    model = make_model("polar")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with running(Engine.of(model, batch_tokens=512)) as server:
        line = [peer, str(ROOT / "tests/serve/grpo.py"), server.url, str(folder)]
        done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["moved"] and found["reward"], found
    differences = []
    for asked in found["asked"]:
        for (prompt, reference), output, reward in zip(
            asked["of"], asked["completions"], asked["rewards"], strict=True
        ):
            wanted = model.score([{"prompt": prompt, "reference": reference, "output": output or "-"}])[0]
            differences.append(abs(wanted - reward) if output.strip() else 0.0)
    return max(differences)


def main() -> None:
    """Prints what was compared."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--peer", required=True, help="interpreter of an environment with torch and TRL")
    with tempfile.TemporaryDirectory() as folder:
        difference = grpo(options.parse_args().peer, Path(folder))
    assert difference <= 1e-5, difference
    print(f"a step of TRL's GRPO: its rewards are the model's, to {difference:.1e}")


if __name__ == "__main__":
    main()
