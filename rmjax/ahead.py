"""A config's training step, or a model's scoring, compiled for a TPU slice that is not there: what it will need.

Needs libtpu, no TPU, and no memory for the parameters: only their shapes are used. `experiments.compile` is the command.
"""

import functools
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rmjax import methods
from rmjax.config import settle
from rmjax.data.packing import ForestShape
from rmjax.data.placement import forest_shardings, matching
from rmjax.evaluate import scorers
from rmjax.models import parameters
from rmjax.models.forest import Forest
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.chips import Slice, slice_devices
from rmjax.parallel.hlo import parse
from rmjax.parallel.mesh import RULES, make_mesh, make_rules, parameter_shardings
from rmjax.parallel.operations import operations
from rmjax.parallel.roofline import collective_table, roofline
from rmjax.program import Program, check, compiler_options, flops_per_token, make_program
from rmjax.start import start_of
from rmjax.train.state import compile_step, initial_params

_log = logging.getLogger(__name__)
_USED = (  # what the compiler says where a step does not fit: in placing buffers, and before that
    r"Used ([\d.]+\w) of ([\d.]+\w) hbm",
    r"memory required .* \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)",
)
_MEMORY = {
    "arguments": "argument_size_in_bytes",  # parameters, optimizer state, batch
    "outputs": "output_size_in_bytes",
    "aliases": "alias_size_in_bytes",  # outputs that take an argument's place
    "temporaries": "temp_size_in_bytes",
    "code": "generated_code_size_in_bytes",
}


class DoesNotFit(RuntimeError):
    """The compiler's verdict on a step that needs more memory than a chip has."""


def compile_ahead(config: Any, where: Slice) -> tuple[Program, Mesh, Any]:
    """The compiled training step of a config's run for a slice.

    Raises:
      DoesNotFit: it needs more HBM than a chip has.
      ValueError: the config fits no run on this slice.
    """
    chosen = methods.choose(settle(config))
    mesh = make_mesh(config.mesh.to_dict(), slice_devices(where))
    rules = make_rules(chosen.config.sharding)
    check(chosen, mesh, rules)
    with jax.set_mesh(mesh):
        program = make_program(chosen, start_of(chosen).config, mesh, rules)
        batch = jax.tree.map(
            lambda shape: _abstract(shape, forest_shardings(mesh, rules)), chosen.shapes(),
            is_leaf=lambda x: isinstance(x, ForestShape),
        )  # fmt: skip
        step = compile_step(program.step, program.shardings, mesh, compiler_options(chosen.config))
        lowered = step.lower(program.abstract, batch)
        return program, mesh, _compiled(lowered, config.data.rows, config.data.row_tokens)


def _compiled(lowered: Any, rows: int, row_tokens: int) -> Any:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = next(filter(None, (re.search(form, str(error)) for form in _USED)), None)
        need = f"{used[1]} of {used[2]} HBM" if used else str(error).splitlines()[0][:300]
        raise DoesNotFit(f"{rows} rows of {row_tokens} tokens do not fit: {need}") from error


def _abstract(shape: ForestShape, shardings: Forest) -> Forest:
    """A batch of no data, as `data.placement.place` would lay it out."""
    arrays = jax.eval_shape(shape.empty)
    fitting = matching(shardings, arrays)
    return jax.tree.map(_placed, arrays, fitting)


def report(config: Any, where: Slice) -> dict[str, Any]:
    """Memory, work, collectives, times and MFU of a config's step on a slice; per chip and step unless it says otherwise."""
    start = time.perf_counter()
    program, mesh, compiled = compile_ahead(config, where)
    found = operations(parse(compiled.as_text()))
    coordinates = [device.coords for device in mesh.devices.flat]
    bound = roofline(found, where, coordinates)
    own = model_flops(config, program) / mesh.size
    peak = {name: own / (seconds * where.chip.flops) for name, seconds in _steps(bound).items()}
    xla = compiled.cost_analysis()
    return {
        "topology": where.name, "chips": mesh.size, "mesh": {k: v for k, v in mesh.shape.items() if v > 1},
        "model": config.model.to_dict(), "parameters": parameters.count(program.abstract.trainable),
        "frozen_parameters": parameters.count(program.abstract.frozen),
        "batch": {"rows": config.data.rows, "row_tokens": config.data.row_tokens,
                  "microbatches": config.optimizer.microbatches},
        "memory_bytes": memory(compiled), "hbm_bytes_of_chip": where.chip.hbm_bytes,
        "flops": bound.flops, "hbm_bytes": bound.hbm_bytes,
        "collectives": collective_table(found, where, coordinates),
        "seconds": {"compute": bound.compute, "hbm": bound.hbm, "ici": bound.ici} | _steps(bound),
        "model_flops": own, "mfu": peak,
        "xla_cost_analysis": {k: xla.get(k) for k in ("flops", "bytes accessed", "optimal_seconds")},
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "compile_seconds": time.perf_counter() - start,
    }  # fmt: skip


def _steps(bound: Any) -> dict[str, float]:
    return {"overlapped": bound.overlapped, "in_turn": bound.in_turn}


def memory(compiled: Any) -> dict[str, int]:
    """Bytes a chip, by kind.

    `peak` is the compiler's own: what has to fit. It is not the sum of the kinds, which a step that fits may exceed.
    """
    stats = compiled.memory_analysis()
    found = {name: int(getattr(stats, field)) for name, field in _MEMORY.items()}
    return found | {"peak": int(stats.peak_memory_in_bytes) + found["code"]}


def scoring(model: TransformerConfig, where: Slice, sizes: Mapping[str, int], shape: ForestShape) -> dict[str, Any]:
    """What scoring a batch needs on a slice: parameters, their bytes and `memory_bytes` a chip, by kind.

    Args:
      model: a reward model's architecture; its parameters are cut over the mesh as in training.
      sizes: axes of the mesh, as of `parallel.mesh.make_mesh`; where they are fewer than the slice's chips, the first ones.
      shape: of the batch; its rows have to divide over the mesh.

    Raises:
      DoesNotFit: it needs more HBM than a chip has.
      ValueError: a parameter does not divide into as many parts.
    """
    mesh = make_mesh(sizes, slice_devices(where)[: math.prod(sizes.values())])
    boxed = jax.eval_shape(functools.partial(initial_params, RewardTransformer(model), 0))
    whole = nn.meta.unbox(boxed)
    cut = jax.tree.map(_placed, whole, parameter_shardings(boxed, mesh))
    with jax.set_mesh(mesh):
        batch = _abstract(shape, forest_shardings(mesh, RULES))
        lowered = scorers.cut_over(scorers.rewards_of(model), mesh).lower(cut, batch)
        found = memory(_compiled(lowered, shape.rows, shape.row_tokens))
    return {
        "topology": where.name, "chips": mesh.size, "parameters": parameters.count(whole),
        "parameter_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(whole)),
        "memory_bytes": found, "hbm_bytes_of_chip": where.chip.hbm_bytes,
    }  # fmt: skip


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def model_flops(config: Any, program: Program) -> float:
    """Of a step over all chips, by `decoder_flops_per_token` with half a row of keys: what is above the diagonal, and what
    the backward pass computes again, is no use to the model."""
    chosen = methods.choose(settle(config))
    shapes = chosen.shapes()

    def of(shape: ForestShape) -> float:
        per_token = flops_per_token(program, program.abstract, shape.row_tokens / 2, chosen.language_model)
        return per_token * shape.rows * shape.row_tokens

    return sum(map(of, shapes.values())) if isinstance(shapes, dict) else of(shapes)


def find_batch(
    config: ConfigDict, where: Slice, measure: Callable[[Any, Slice], dict[str, Any]] = report
) -> dict[str, Any]:
    """The report for the most rows that fit, with the config's mesh and microbatches.

    Raises:
      DoesNotFit: not even the smallest batch does.
    """
    mesh = make_mesh(config.mesh.to_dict(), slice_devices(where))
    unit = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"] * config.optimizer.microbatches, config.data.streams)

    def attempt(parts: int) -> dict[str, Any] | None:
        tried = ConfigDict(config)
        tried.data.rows = parts * unit
        try:
            return measure(tried, where)
        except DoesNotFit as error:
            _log.info("%s", error)
            return None

    best = attempt(1)
    if best is None:
        raise DoesNotFit(f"not even {unit} rows fit; more chips, a shorter row, or another mesh or remat may")
    low, high = 1, 2
    while found := attempt(high):
        best, low, high = found, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle)
        best, low, high = (found, middle, high) if found else (best, low, middle)
    return best


def describe(found: dict[str, Any]) -> str:
    """The report as lines to read."""
    giga, seconds, batch = 1e9, found["seconds"], found["batch"]
    room = found["hbm_bytes_of_chip"]
    lines = [
        f"{found['topology']}: {found['chips']} chips, mesh {found['mesh']}, {found['parameters']:,} parameters to train, "
        f"{batch['rows']} rows of {batch['row_tokens']} tokens in {batch['microbatches']} microbatches",
        "memory a chip (GB): " + ", ".join(f"{k} {v / giga:.2f}" for k, v in found["memory_bytes"].items())
        + f" of {room / giga:.2f}",
        f"work a chip and step: {found['flops'] / 1e12:.2f} TFLOP ({found['model_flops'] / 1e12:.2f} the model's own), "
        f"{found['hbm_bytes'] / giga:.2f} GB of HBM traffic",
        *(
            f"  {c['kind']}{' (asynchronous)' if c['asynchronous'] else ''} of {c['bytes'] / 1e6:.2f} MB over {c['chips']} "
            f"chips, {c['times']} times: {1e3 * c['seconds']:.2f} ms"
            for c in found["collectives"]
        ),
        "time a step (ms): " + ", ".join(f"{k} {1e3 * v:.1f}" for k, v in seconds.items()),
        "MFU: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in found["mfu"].items()),
    ]  # fmt: skip
    return "\n".join(lines)
