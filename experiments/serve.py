"""A reward model at a port: `python -m experiments.serve --model=DIR|shipped:NAME|ORG/MODEL --port=8000`.

Trainers and scoring clients ask it in their own dialects; docs/serving.md lists them. `rmjax serve` is the short form.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string(
        "model", None, "reward model: a run's folder, one of the hub's form, shipped:NAME, or ORG/MODEL", required=True
    )
    flags.DEFINE_string("host", "127.0.0.1", "address to listen at; 0.0.0.0 is every one")
    flags.DEFINE_integer("port", 8000, "0 = a free one", 0, 65535)
    flags.DEFINE_string("name", "", "the model's name in replies; empty = its folder's")
    flags.DEFINE_enum(
        "truncate", "refuse", ["refuse", "format"], "records that are too long: 413, or cut as in training"
    )
    flags.DEFINE_integer("max_tokens", 0, "longest text; 0 = the format's, 2048 at most", 0)
    flags.DEFINE_integer("batch_tokens", 0, "tokens of a call of the model at most; 0 = 4096 a device", 0)
    flags.DEFINE_integer(
        "prefix_cache_tokens",
        0,
        "tokens of prompts and references whose keys and values are kept from batch to batch",
        0,
    )
    flags.DEFINE_integer("queue", 4096, "texts that may wait; more get 503", 1)
    flags.DEFINE_float(
        "wait_ms", 3.0, "the first text of a batch waits so long for others while nothing else waits", 0.0
    )
    flags.DEFINE_multi_string(
        "strip", [], "text at the end of an OpenRLHF query that is not the answer's, such as </s>"
    )
    flags.DEFINE_bool("scalar_pooling", False, "/pooling answers with numbers, as LMDeploy does, instead of [[number]]")
    flags.DEFINE_float("body_mb", 16.0, "largest request, MiB", 0.001)
    flags.DEFINE_integer("drain_seconds", 60, "that requests at hand get after SIGTERM", 1)
    flags.DEFINE_string("log", None, "file that gets a JSON line for each request, without its texts")
    flags.DEFINE_string("token_file", None, "file with a bearer token that clients must send; or RMJAX_SERVE_TOKEN")
    flags.DEFINE_enum(
        "dtype",
        "",
        ["", "float32", "bfloat16", "float16"],
        "of a hub model's weights and activations; empty = its files'",
    )
    flags.DEFINE_string(
        "template", "", "chat template of a hub model, a .jinja file or chatml; empty = the model's own"
    )
    flags.DEFINE_enum("mesh", "all", ["one", "all"], "run the model on one device, or a batch's rows on all of them")


def run(values: flags.FlagValues) -> None:
    """Serves by the flags.

    Raises:
      ImportError: the extra `serve` is not installed.
      OSError, ValueError: as `rmjax.serve.server.serve`.
    """
    from rmjax.serve.server import Options, serve

    serve(
        Options(
            values.model, values.host, values.port, values.name, values.truncate, values.max_tokens, values.batch_tokens,
            values.prefix_cache_tokens, values.queue, values.wait_ms, tuple(values.strip), values.scalar_pooling,
            values.body_mb, values.drain_seconds, values.log and Path(values.log),
            values.token_file and Path(values.token_file), values.mesh, values.dtype, values.template,
        )
    )  # fmt: skip


def main(_: Sequence[str]) -> None:
    """Serves until SIGTERM."""
    sys.exit(guarded(functools.partial(run, flags.FLAGS)))


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
