"""What runs before a commit is what the lint of the project runs."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_versions_are_those_of_the_constraints():
    pinned = set((ROOT / "constraints.txt").read_text().splitlines())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    ruffs = [one for hook in hooks for one in hook.get("additional_dependencies", ()) if re.match("ruff==", one)]
    assert len(ruffs) == 2 and set(ruffs) <= pinned
    assert {"ruff", "ruff-format", "end-of-file", "trailing-whitespace", "config-reference"} == {
        hook["id"] for hook in hooks
    }
