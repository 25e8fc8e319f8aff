"""Records the server's replies to the fixtures' requests anew: `python -m tests.serve.renew`. Look at the difference."""

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).with_name("fixtures")
STRIP = ("</s>",)
ID = {"X-Request-Id": "ours"}


def steady(value: Any) -> Any:
    """A reply without the time and the fingerprint."""
    if isinstance(value, dict):
        return {name: "…" if name in ("created", "fingerprint") else steady(each) for name, each in value.items()}
    return [steady(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Writes `reply` into each fixture."""
    from rmjax.serve.engine import Engine
    from tests.serve.conftest import make_model, running

    engine = Engine.of(make_model("polar"), batch_tokens=512)
    with running(engine, strip=STRIP) as server:
        for path in sorted(FIXTURES.glob("*.json")):
            fixture = json.loads(path.read_text())
            status, reply = server.ask(fixture["path"], fixture["request"], **ID)
            assert status == 200, (path, reply)
            fixture["reply"] = steady(reply)
            path.write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
