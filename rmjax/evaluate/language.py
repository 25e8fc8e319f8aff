"""What a language model can do and knows: loss and exact answers on texts, and short answers that it writes itself."""

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, pack
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.adapters import fingerprint, frozen_layers, load_adapter
from rmjax.losses.language_model import next_token
from rmjax.models.forest import Forest
from rmjax.models.parameters import check_same
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.policy.sampling import Decoding, generate, left_pad, rules
from rmjax.reward_model import abstract_params, load_description, load_params

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder with its weights: `params` as `generate` takes them, that is without `backbone/`."""

    config: TransformerConfig
    params: Any
    tokenizer: Tokenizer
    form: Format  # of kind "chat" its template and end token are used; else a prompt is plain text

    def encoder(self, row_tokens: int) -> Encoder:
        """What turns records into token ids for this model. ValueError where its texts may be longer than the model allows."""
        self.config.check_length(self.form.max_length, "the format's max_length")
        return Encoder(self.tokenizer, self.form, row_tokens)

    @classmethod
    def load(cls, path: str | Path) -> "LanguageModel":
        """From a directory that `experiments.train` wrote: its newest intact checkpoint.

        Raises:
          FileNotFoundError, ValueError: not such a directory, or a damaged file; the message names it.
          CheckpointError: no intact checkpoint.
        """
        config, form, tokenizer = load_description(Path(path))
        if form.kind == "polar":  # a description from before formats had kinds: texts were ChatML
            form = dataclasses.replace(form, kind="chat", template="chatml")
        return cls(config, jax.device_put(load_params(Path(path))["backbone"]), tokenizer, form)

    def with_adapter(self, path: str | Path) -> "LanguageModel":
        """This model with the adapter of a file (`hub.adapters.save_adapter`) in place of its own, if it has any.

        Models with adapters of one form and place share what is compiled.

        Raises:
          FileNotFoundError, ValueError: as `hub.adapters.load_adapter`; or the file is a reward model's.
          ParameterError: the file's parameters are not those of the adapter that it says it is; the message lists them.
        """
        own = {"backbone": self.params}
        adapter, params = load_adapter(path, own, fingerprint(own))
        if "head" in params:
            raise ValueError(f"{path}: is a reward model's adapter (it has a head), and this is a language model")
        adapter = dataclasses.replace(adapter, dropout=0.0)  # of training only
        config = dataclasses.replace(self.config, adapter=adapter, frozen_layers=frozen_layers(params))
        check_same(abstract_params(config)["backbone"], params["backbone"])
        return dataclasses.replace(self, config=config, params=params["backbone"])


@dataclasses.dataclass(frozen=True)
class TextScore:
    """A text under a model."""

    loss: float  # nats per learned token
    exact: bool  # greedy decoding gives every learned token


def score_texts(
    model: LanguageModel, texts: Sequence[Comparison], shape: ForestShape, ended: bool = True
) -> list[TextScore]:
    """Scores records of one output, in their order; what is learned of each is what training would learn.

    Greedy decoding gives exactly the output and the end token iff each of them is the most likely one after those
    before it, so that one pass over the whole text decides.

    Args:
      ended: False for texts that just stop; the end token then is not learned.

    Raises:
      ValueError: nothing of a text is left to be learned in `shape.row_tokens` tokens.
    """
    encoder = model.encoder(shape.row_tokens)
    trees = [tree for i, text in enumerate(texts) for tree in encoder.language_model_trees(text, i, ended)]
    if counts := dict(+encoder.counts):
        _log.warning("while scoring %d texts: %s", len(texts), counts)
    scores: dict[int, TextScore] = {}
    for forest, places in pack(trees, shape):
        losses_RG, wrong_RG, counts_RG = jax.device_get(_sums({"backbone": model.params}, forest, model.config))
        for r, row in enumerate(places):
            for g, i in enumerate(row):
                if not counts_RG[r, g]:
                    raise ValueError(f"text {i} has no output within {shape.row_tokens} tokens; raise row_tokens")
                scores[i] = TextScore(float(losses_RG[r, g] / counts_RG[r, g]), not wrong_RG[r, g])
    return [scores[i] for i in range(len(texts))]


@functools.partial(jax.jit, static_argnames="config")
def _sums(params: Any, forest: Forest, config: TransformerConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per group: loss, wrong tokens and tokens, summed over those with a target; [R, G] each."""
    logits_RTV: Any = RewardTransformer(config).apply({"params": params}, forest, method="logits")
    wrong_RT = jnp.argmax(logits_RTV, axis=-1) != forest.target_RT
    of_group_RTG = jax.nn.one_hot(forest.group_RT - 1, forest.shape[2]) * forest.target_weight_RT[..., None]
    loss_RT = next_token(logits_RTV, forest.target_RT)
    over_tokens = functools.partial(jnp.einsum, "rt,rtg->rg")
    return over_tokens(loss_RT, of_group_RTG), over_tokens(wrong_RT, of_group_RTG), jnp.sum(of_group_RTG, axis=1)


def answers(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int, batch: int = 64) -> list[str]:
    """Greedy answers to prompts, up to the end token."""
    encoder = model.encoder(row_tokens=1)
    ids = [encoder.begun(prompt) for prompt in prompts]
    stop = (model.tokenizer.id(encoder.form.end_token),) if encoder.form.end_token else ()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, str] = {}
    for chosen in _batches(order, batch):
        rule, candidates = rules([Decoding(temperature=0)] * len(chosen), model.config.vocab_size)
        written_RM = generate(
            model.params, left_pad([[]], 1), left_pad([ids[i] for i in chosen]),
            jnp.stack([jax.random.key(0)] * len(chosen)), rule, config=model.config, candidates=candidates, samples=1,
            max_new_tokens=max_new_tokens, stop=stop,
        )  # fmt: skip
        for i, row in zip(chosen, np.asarray(written_RM), strict=True):
            found[i] = model.tokenizer.decode(row[row >= 0].tolist())
    return [found[i] for i in range(len(prompts))]


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (order[i : i + size] for i in range(0, len(order), size))


def says(output: str, accepted: Sequence[str]) -> bool:
    """Whether an output has one of the accepted answers in it, as whole words, in any case."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", output, re.IGNORECASE) for answer in accepted)
