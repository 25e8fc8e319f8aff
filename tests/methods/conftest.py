"""The fixtures of tests/train: methods are tried on the same tiny model and batches."""

from tests.train.conftest import (  # noqa: F401
    boxed,
    forest,
    lay_out,
    learned,
    model,
    params,
    trees,
)
