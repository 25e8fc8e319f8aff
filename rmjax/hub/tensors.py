"""Tensors of a folder's safetensors files: which there are, whether they are those of an architecture, and parts of them."""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  # numpy then knows bfloat16, which safetensors reads by name
import numpy as np
from safetensors import SafetensorError, safe_open

from rmjax.files import disguise
from rmjax.hub.names import HEADS, Family, Fused
from rmjax.models.parameters import flat, nested
from rmjax.models.stored import Index, Stored
from rmjax.models.transformer import Transformer, TransformerConfig, causal_mask

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROWS_COMPARED = 1024  # of a tensor at a time
SHOWN = 40  # problems in a message
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PREFIXES = (  # around a decoder inside another model: GRM's, Gemma 3's with a vision tower before and since transformers 5
    (re.compile(r"^(model\.language_model|language_model\.model|model\.model)\."), "model."),
    (re.compile(r"^(model|language_model)\.lm_head\."), "lm_head."),
)
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # older files have what the config says as well
_VISION = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


class HubError(ValueError):
    """A folder in Hugging Face's form that cannot be read as what it says it is."""


class Tensors:
    """The tensors of a folder, by name without the prefixes of models around the decoder.

    A file is open for one read at a time, since pages of it that were read count as memory while it is.

    Attributes:
      shapes, dtypes: of each, as the files say.
      skipped: why → how many tensors are left out.

    Raises:
      FileNotFoundError: no safetensors in the folder.
      HubError: a file is absent, cut short or no safetensors file, or holds others than its index says.
    """

    def __init__(self, folder: Path, vision: bool = False):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()
        self._places: dict[str, tuple[Path, str]] = {}
        for file in _files(folder):
            self._add(file, _opened(file), vision)

    def _add(self, file: Path, handle: Any, vision: bool) -> None:
        for stored in handle.keys():  # noqa: SIM118  # not a mapping
            if _COMPUTED.search(stored) or (vision and _VISION.match(stored)):
                self.skipped["frequencies" if _COMPUTED.search(stored) else "vision"] += 1
                continue
            name = _bare(stored)
            if name in self._places:
                raise HubError(
                    f"{file}: has {stored}, which {self._places[name][0].name} has, too; get the folder again"
                )
            part = handle.get_slice(stored)
            self._places[name] = file, stored
            self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()

    def part(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, in the file's own order and dtype."""
        file, stored = self._places[name]
        try:
            return _opened(file).get_slice(stored)[tuple(index)]
        except SafetensorError as error:
            raise HubError(f"{file}: {stored} is unreadable ({error}); get the file again") from error

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; read in parts. One that is absent differs from nothing."""
        if other not in self.shapes:
            return True
        if self.shapes[name] != self.shapes[other]:
            return False
        rows = self.shapes[name][0]
        starts = ((i, min(i + ROWS_COMPARED, rows)) for i in range(0, rows, ROWS_COMPARED))
        parts = (tuple(self.part(each, (slice(*ends),)) for each in (name, other)) for ends in starts)
        return all(np.array_equal(a, b) for a, b in parts)

    def drop(self, name: str, why: str) -> None:
        """Leaves a tensor out, and counts it."""
        del self._places[name], self.shapes[name], self.dtypes[name]
        self.skipped[why] += 1


def _bare(name: str) -> str:
    for pattern, new in _PREFIXES:
        name = pattern.sub(new, name)
    return name


def _files(folder: Path) -> list[Path]:
    """The folder's files of weights, by its index where it has one."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise FileNotFoundError(_without_weights(folder))
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(named.values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise HubError(f"{index}: not an index of tensors ({error!r}); get the file again") from error
    if absent := [file.name for file in files if not file.is_file()]:
        raise HubError(f"{index}: names {', '.join(absent)}, which the folder lacks; fetch the rest of it")
    _check_index(index, named, files)
    return files


def _check_index(index: Path, named: Mapping[str, str], files: Sequence[Path]) -> None:
    found = {name: file.name for file in files for name in _opened(file).keys()}  # noqa: SIM118
    wrong = [f"{name} in {file}" for name, file in named.items() if found.get(name) != file]
    wrong += [f"{name}, which is in {file}, nowhere" for name, file in found.items() if name not in named]
    if wrong:
        raise HubError(
            f"{index}: has {_listed(wrong)}, and the files say otherwise; fetch index and files of one revision"
        )


def _without_weights(folder: Path) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: its weights are pickles ({_listed(pickles)}), programs that run when they are read, and here none is; "
            "get the model as safetensors, or convert it once where torch is: "
            "AutoModel….from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    if (folder / "adapter_model.safetensors").is_file():
        return f"{folder}: holds an adapter alone; merge it into its base where PEFT is, and give that folder"
    return f"{folder}: has no {SINGLE} and no {INDEX}; fetch the weights, too"


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        found = disguise(file)
        why = f"{found[0]}; {found[1]}" if found else f"not a readable safetensors file ({error}); get the file again"
        raise HubError(f"{file}: {why}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where one array of ours lies: a tensor, or some of its rows (outputs)."""

    tensor: str
    transposed: bool  # ours is [in, out], the tensor [out, in]
    rows: np.ndarray | None = None

    def read(self, tensors: Tensors, index: Index) -> np.ndarray:
        """A part of our array."""
        inner, outputs = index[:-1], index[-1]
        if self.rows is None:
            found = tensors.part(self.tensor, index[::-1])
        else:
            rows = self.rows[outputs]
            first, last = int(rows[0]), int(rows[-1])
            if last - first + 1 == len(rows):
                found = tensors.part(self.tensor, (slice(first, last + 1), *inner))
            else:
                found = tensors.part(self.tensor, (slice(None), *inner))[rows]
        return found.T if self.transposed else found


@dataclasses.dataclass(frozen=True)
class Layout:
    """An architecture's leaves in a family's tensors.

    Attributes:
      leaves: path → (shape, the place of each layer; of one array where it is not stacked).
      wanted: tensor → shape.
    """

    leaves: Mapping[str, tuple[tuple[int, ...], tuple[Place, ...]]]
    wanted: Mapping[str, tuple[int, ...]]


def layout(config: TransformerConfig, family: Family, head: str = "") -> Layout:
    """Where the parameters of an architecture lie.

    Args:
      config: without adapter or frozen layers.
      family: whose names.
      head: one of `names.HEADS`; "" = no reward head.

    Raises:
      HubError: the family has no name for a parameter of this architecture.
    """
    shapes = decoder_shapes(config) | head_shapes(config, head)
    leaves = {path: (shape, _places(path, shape, config, family, head)) for path, shape in shapes.items()}
    wanted: dict[str, tuple[int, ...]] = {}
    for path, (shape, places) in leaves.items():
        own = shape[1:] if _stacked(path) else shape
        for place in places:
            rows = own[-1] + (wanted[place.tensor][0] if place.rows is not None and place.tensor in wanted else 0)
            wanted[place.tensor] = (rows, *own[:-1]) if place.transposed or place.rows is not None else own
    return Layout(leaves, wanted)


@functools.lru_cache(maxsize=64)
def decoder_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Path from the root → shape of a decoder's parameters."""
    tokens_RT = jnp.zeros((1, 2), jnp.int32)
    model = Transformer(config)

    def init(key: jax.Array) -> Any:
        return model.init(key, tokens_RT, tokens_RT, causal_mask(tokens_RT == 0), method=_whole)["params"]

    boxed = jax.eval_shape(init, jax.random.key(0))
    unboxed = jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "names"))
    return {f"backbone/{path}": tuple(leaf.shape) for path, leaf in flat(unboxed).items()}


def _whole(model: Transformer, tokens_RT: Any, positions_RT: Any, mask_RTS: Any) -> Any:
    return model.logits(model(tokens_RT, positions_RT, mask_RTS))


def head_shapes(config: TransformerConfig, head: str) -> dict[str, tuple[int, ...]]:
    """The same of a reward head of a kind of `names.HEADS`; none of ""."""
    D, F = config.width, config.head_hidden or config.width
    shapes = {
        "head/kernel": (D, 1), "head/bias": (1,), "head/hidden/kernel": (D, F), "head/hidden/bias": (F,),
        "head/output/kernel": (F, 1), "head/output/bias": (1,),
    }  # fmt: skip
    return {path: shapes[path] for path in HEADS[head]} if head else {}


def _stacked(path: str) -> bool:
    return path.startswith("backbone/layers/")


def _places(
    path: str, shape: tuple[int, ...], config: TransformerConfig, family: Family, head: str
) -> tuple[Place, ...]:
    transposed = path.endswith("/kernel")
    if path.startswith("head/"):
        return (Place(HEADS[head][path], transposed),)
    leaf = path.rpartition("/")[2]
    ending = "bias" if leaf == "bias" else "weight"
    if not _stacked(path):
        return (Place(f"{_name(family.whole, path)}.{ending}", transposed),)
    below = path.removeprefix("backbone/layers/")
    module = below.rpartition("/")[0]
    fused = next((tensor for tensor in family.fused if module in tensor.parts), None)
    rows = None if fused is None else _rows(fused, module, config)
    name = fused.name if fused else _name(family.layers, below)
    return tuple(Place(f"model.layers.{i}.{name}.{ending}", transposed, rows) for i in range(shape[0]))


def _name(names: Mapping[str, Any], path: str) -> str:
    """A bias is called as its kernel."""
    found = names.get(path) or names.get(re.sub("/bias$", "/kernel", path))
    if found is None:
        raise HubError(f"the architecture has {path}, and this family of models has no name for it")
    return str(found.hugging_face)


def _rows(fused: Fused, module: str, config: TransformerConfig) -> np.ndarray:
    """Rows of a fused tensor that are a module's outputs, in our order."""
    E, J, F = config.head_width, config.kv_heads, config.mlp_width
    P = config.heads // J
    if fused.grouped:
        rows_JGE = np.arange(J * (P + 2) * E).reshape(J, P + 2, E)
        kind = fused.parts.index(module)
        return rows_JGE[:, [slice(P), slice(P, P + 1), slice(P + 1, P + 2)][kind]].reshape(-1)
    sizes = {"query": J * P * E, "key": J * E, "value": J * E, "gate": F, "up": F}
    before = fused.parts[: fused.parts.index(module)]
    start = sum(sizes[part.rpartition("/")[2]] for part in before)
    return np.arange(start, start + sizes[module.rpartition("/")[2]])


def check(tensors: Tensors, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """HubError that lists every tensor that is missing, unknown, of another shape, or of a dtype that is not read."""
    shapes = tensors.shapes
    problems = [f"{name} is missing" for name in wanted if name not in shapes]
    problems += [f"{name} is unknown" for name in shapes if name not in wanted]
    problems += [
        f"{name} has shape {list(shapes[name])}, and by config.json it has {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    problems += [
        f"{name} is of dtype {dtype}, supported: {', '.join(DTYPES)}"
        for name, dtype in tensors.dtypes.items()
        if dtype not in DTYPES
    ]
    if problems:
        raise HubError(
            f"{tensors.folder}: its tensors are not those that config.json describes: {_listed(problems, '; ')}; get a folder "
            "of one revision, in 16 or 32 bits"
        )


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def parameters(tensors: Tensors, found: Layout, dtype: str = "") -> dict[str, Any]:
    """The parameter tree, of leaves that are read when they are asked for.

    Args:
      dtype: of the decoder's leaves; "" = as in the files. The head's are float32.
    """
    return nested({path: _leaf(tensors, path, *leaf, dtype) for path, leaf in found.leaves.items()})


def _leaf(tensors: Tensors, path: str, shape: tuple[int, ...], places: tuple[Place, ...], dtype: str) -> Stored:
    held = {DTYPES[tensors.dtypes[place.tensor]] for place in places}
    own = "float32" if path.startswith("head/") else dtype or (held.pop() if len(held) == 1 else "float32")

    def read(layer: int, index: Index) -> np.ndarray:
        return places[layer].read(tensors, index)

    return Stored(shape, jnp.dtype(own), read, range(len(places)) if _stacked(path) else None)
