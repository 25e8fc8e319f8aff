"""`make test-wheel`: the ten lines in an empty folder, stopped by SIGTERM on the way and run again; then the console command."""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINES = Path(__file__).with_name("ten_lines.py").resolve()


def saved(folder: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    return sorted(
        int(p.parent.name) for p in folder.glob("polar/checkpoints/*/manifest.json") if p.parent.name.isdigit()
    )


def console(folder: Path, *words: str) -> str:
    """What the installed command prints."""
    program = Path(sys.executable).with_name("rmjax")
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_console(folder: Path) -> None:
    """The command with the model that was trained, and with each one that comes with the package."""
    import rmjax_client
    from rmjax import __version__
    from rmjax.hub.shipped import shipped_models

    assert rmjax_client.Client("http://127.0.0.1:8000"), "the server's client comes with the wheel"

    assert console(folder, "--version") == f"rmjax {__version__}\n"
    rows = [{"prompt": "3 + 4?", "reference": "It is 7.", "output": output} for output in ("That is 7.", "No idea.")]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "polar-smollm2" in shipped_models(), "README's six lines need it"
    for model in ("polar", *(f"shipped:{name}" for name in shipped_models())):
        shown = console(folder, "score", "answers.jsonl", f"--model={model}", "--out=scored.csv")
        assert "That is 7." in shown and len((folder / "scored.csv").read_text().splitlines()) == 3, shown
    console(folder, "evaluate", "shipped:ranked_test", "--model=polar")  # without matplotlib


def main() -> None:
    """Fails with what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = subprocess.Popen([sys.executable, str(LINES)], cwd=folder, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 600
        while not saved(folder) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=300)[1]
        assert "asked to stop: saved step" in said, said
        stopped = saved(folder)[-1]
        second = subprocess.run([sys.executable, str(LINES)], cwd=folder, capture_output=True, text=True, timeout=900)
        assert second.returncode == 0, second.stderr
        steps = [json.loads(line)["step"] for line in (folder / "polar" / "metrics.jsonl").read_text().splitlines()]
        scores = json.loads(second.stdout.splitlines()[-1])
        assert 0 < stopped < 6 and saved(folder)[-1] == 6 and steps == list(range(1, 7)), (stopped, steps)
        assert len(scores) == 2 and all(map(math.isfinite, scores)) and scores[0] != scores[1], scores
        check_console(folder)
        import rmjax

        assert not Path(rmjax.__file__).is_relative_to(Path(__file__).parents[2] / "rmjax"), "the checkout was imported"
    print(f"installed package: stopped at step {stopped}, went on to 6, scores {scores}")


if __name__ == "__main__":
    main()
