"""The named architectures have the sizes of what they are named after."""

import jax
import pytest

from rmjax.models.parameters import count
from rmjax.models.presets import PRESETS
from rmjax.models.reward import RewardTransformer
from rmjax.train.state import initial_params


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [("internlm2_5_1_8b", 1_699_579_904, 2048), ("internlm2_5_7b", 7_358_648_320, 4096)],
)
def test_parameters_of_polar(name, parameters, width):
    model = RewardTransformer(PRESETS[name])
    assert count(jax.eval_shape(lambda: initial_params(model, 0))) == parameters + width  # and the reward head
