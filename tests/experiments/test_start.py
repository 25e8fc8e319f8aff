"""What every entry point does first."""

import pytest
from absl import flags

from experiments import start


@pytest.mark.parametrize(
    ("flag", "refused"),
    [
        ("ray_address=ray://head:10001", False),
        ("workdir=ray://head:10001", True),
        ("ray_address=gs://bucket", True),
        ("reward=http://host:8000", False),
        ("workdir=runs/x", False),
    ],
)
def test_buckets_are_refused_and_servers_are_not(flag, refused, monkeypatch, capsys):
    given = flags.FlagValues()
    name, _, value = flag.partition("=")
    flags.DEFINE_string(name, value, "", flag_values=given)
    given.mark_as_parsed()
    monkeypatch.setattr(flags, "FLAGS", given)
    if not refused:
        return start._refuse_urls()
    with pytest.raises(SystemExit) as stop:
        start._refuse_urls()
    assert stop.value.code == 1 and f"error: --{flag} is a URL; mount the bucket" in capsys.readouterr().err
