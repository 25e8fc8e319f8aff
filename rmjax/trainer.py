"""`Trainer`: a config as objects that can be looked at, stepped and run."""

import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rmjax import methods
from rmjax.config import complete, keep_config, settle
from rmjax.data import placement
from rmjax.data.formats import Encoder, Format, completed, refuse_longer
from rmjax.data.pipeline import FileSource, Source
from rmjax.evaluate.scorers import RewardScorer, Scorer, batch_tokens, on_mesh
from rmjax.evaluate.suites import Measure, evaluators_from
from rmjax.files import refuse_url, write_json
from rmjax.locks import locked
from rmjax.models import parameters
from rmjax.models.rope import longest_text
from rmjax.parallel.hosts import EndTogether
from rmjax.parallel.mesh import Rules, make_mesh, make_rules, shards
from rmjax.program import Program, check, compiler_options, first_state, flops_per_token, make_program, refuse_dead_head
from rmjax.reward_model import CHECKPOINTS, MODEL_FILE, RewardModel, load_description, save_description
from rmjax.rounds import answers
from rmjax.rounds.watch import Watch
from rmjax.settings import AnswersEval
from rmjax.start import Start, check_format, start_of
from rmjax.streams import Stream, format_of, open_stream
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.flops import mfu
from rmjax.train.loop import means, restored, saved_part, train
from rmjax.train.metrics import MetricWriter, count_traces, read_metrics
from rmjax.train.state import State, compile_step

_log = logging.getLogger(__name__)
DATA_FILE = "data.json"


class Trainer:
    """One training run of a config.

        trainer = Trainer(config, "runs/mine")
        trainer.run()         # to the end, from wherever it stopped
        trainer.evaluate()    # {"NAME/accuracy": …}

    In a notebook, `trainer.step()` takes the next batch and gives its metrics; without a `workdir` nothing is written.

    Attributes:
      config: the checked config.
      mesh, rules: devices, and how arrays are cut over them.
      start: the model that the run starts from, with its tokenizer.
      format: how records become tokens.
      program: the training step and what it is made of.
      stream: where its batches come from; `stream.counts` says what encoding them had to cut.
      source: the batches.
      evaluations: name → (every so many steps, function of the state).
      state: what training changes; None before the first step, evaluation or run.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path | None = None):
        """Checks and opens everything that the run needs; makes no parameters yet.

        Raises:
          ValueError: a key, a value, or values that do not go together; the message names them.
          OSError: a file that cannot be read, or a `workdir` that cannot be written.
          RecordError: a record that cannot be used.
        """
        self._given, self.workdir = complete(config), Path(workdir) if workdir is not None else None
        self.config = settle(self._given)
        self.chosen = methods.choose(self.config)
        self.mesh: Mesh = make_mesh(dataclasses.asdict(self.config.mesh))
        self.rules: Rules = make_rules(self.config.sharding)
        check(self.chosen, self.mesh, self.rules)
        if self.workdir:
            open_workdir(self.workdir)
        self.start: Start = start_of(self.chosen)
        self.format = self._format()
        refuse_longer(self.format, longest_text(self.start.config.rope, self.start.config.max_positions))
        if not self.chosen.language_model:  # a reward head is bound to its format
            check_format(self.config.model, self.format)
        data = self.config.data
        self.share = placement.shard_of_process(self.mesh, self.rules, data.rows, data.streams)
        self.stream: Stream = open_stream(self.chosen, self.start.tokenizer, self.format, self.share)
        self.program: Program = make_program(self.chosen, self.start.config, self.mesh, self.rules)
        self.chosen.check_start(self.start.params, self.program.rate)
        self._counted = count_traces(self.program.step)
        self._compiled = compile_step(self._counted, self.program.shardings, self.mesh, compiler_options(self.config))
        self._score = on_mesh(self.program.rewards, self.mesh, self.rules)
        self._scene = self._made_scene()
        self.evaluations = self._evaluations()
        self.source = self._source()
        self.state: State | None = None

    @property
    def params(self) -> dict[str, Any]:
        """The main model's parameters."""
        state = self._started()
        return self.program.roles.of(parameters.merge(state.trainable, state.frozen))

    def run(self) -> State:
        """Trains to the last step, from the newest checkpoint in `workdir` if there is one, and gives the last state, saved.

        Raises:
          ValueError: no `workdir`, or one that holds a run of another config or other data; or nothing could be learned.
          InUseError: another run is writing to `workdir`.
          Diverged, Preempted: as `rmjax.train.loop.train`.
        """
        if self.workdir is None:
            raise ValueError("a run needs a folder to write to; give Trainer(config, workdir)")
        keep, every = self.config.run.keep, self.config.run.keep_every or None
        with (
            locked(self.workdir),
            jax.set_mesh(self.mesh),
            Checkpoints(self.workdir / CHECKPOINTS, keep, every, ("frozen",)) as saved,
        ):
            state, data, first = self._restore(saved)
            self._describe_run(resumed=state is not None)
            if state is not None:
                self.state = state
                self.source.set_state(data["iterator"])
            writer = self._writer(first)
            watch = self._watch()
            try:
                self.state = train(
                    self._started(), self._compiled, self.source, steps=self.config.run.steps, place=self._place,
                    checkpoints=saved, writer=writer, directory=self.workdir, describe=self._derived(),
                    traces=self._counted, log_every=self.config.run.log_every, save_every=self.config.run.save_every,
                    evaluations=self.evaluations, identify=self.stream.identify, since=data.get("terms"), watch=watch,
                )  # fmt: skip
            except BaseException:
                # The step has given the state's memory away; the next call starts from the newest checkpoint, or afresh.
                self.state, self.source = None, self._source()
                raise
            finally:
                writer.close()
                if +self.stream.counts:
                    _log.warning("while encoding: %s", dict(self.stream.counts))
        return self.state

    def step(self, batch: Any = None) -> dict[str, float]:
        """Takes one step on `batch` (a forest on the host, or several by name), or on the next one of the source.

        Returns:
          The step's metrics: `loss`, `accuracy`, `gradient_norm`, …

        Raises:
          ValueError: the data has ended.
        """
        state = self._started()
        if batch is None:
            batch = self.source.next(state, int(state.step) + 1)
        if batch is None:
            raise ValueError("the data has ended; raise data.epochs")
        with jax.set_mesh(self.mesh):
            self.state, terms = self._compiled(state, self._place(batch))
        return means(jax.device_get(terms))

    def evaluate(self) -> dict[str, float]:
        """The evaluations of `config.evals` at the present state: {"NAME/METRIC": value}."""
        state = self._started()
        with jax.set_mesh(self.mesh):
            return {
                f"{name}/{metric}": value
                for name, (_, evaluate) in self.evaluations.items()
                for metric, value in evaluate(state).items()
            }

    # --- the parts -------------------------------------------------------------------------------------------------------

    def _started(self) -> State:
        if self.state is None:
            with jax.set_mesh(self.mesh):
                self.state = first_state(self.chosen, self.program, self.start)
            refuse_dead_head(self.chosen, self.state)
        return self.state

    def _place(self, batch: Any) -> Any:
        return placement.place(batch, placement.forest_shardings(self.mesh, self.rules), self.share)

    def _source(self) -> Source:
        source = self.chosen.own_source(self._scene)
        if source is None:
            batches = iter(self.stream.batches)
            together = self.share.streams > 1 and self.config.data.epochs
            source = FileSource(EndTogether(batches) if together else batches)
        return self.chosen.source(source, self._measure)

    def _made_scene(self) -> methods.Scene:
        return methods.Scene(
            self.start.config, self.program.model, self.program.roles, self.start.tokenizer,
            completed(self.format, self.start.tokenizer), self.stream.records[methods.MAIN], self.workdir,
            functools.partial(on_mesh, mesh=self.mesh, rules=self.rules), functools.cache(_scorer), self.mesh, self.rules,
            shards(self.mesh, self.rules, "rows") * self.config.optimizer.microbatches,
        )  # fmt: skip

    def _measure(self, name: str) -> methods.Rewards:
        """One of the methods' measures, on the mesh."""
        return on_mesh(self.chosen.measures(self.program.model)[name], self.mesh, self.rules)

    def _restore(self, saved: Checkpoints) -> tuple[State | None, dict[str, Any], int]:
        """(state, what was saved beside it, its step); (None, {}, −1) where nothing was."""
        abstract, shardings = self.program.abstract, self.program.shardings
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        found = saved.restore(saved_part(wanted))
        if found is None:
            return None, {}, -1
        step, parts, data = found
        _log.info("going on from step %d", step)
        return restored(abstract, parts), data, step

    def _check_data(self, path: Path, now: Mapping[str, Any]) -> None:
        """ValueError where the run's data is not what it was trained on so far."""
        try:
            before = {
                name: (then["records"], then["sha256"][:12]) for name, then in json.loads(path.read_text()).items()
            }
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{path}: not what a run writes ({error!r}); bring it back, or use a new workdir"
            ) from error
        for name, found in now.items():
            then, this = before.get(name, (0, "none")), (found["records"], found["sha256"][:12])
            if then != this:
                raise ValueError(
                    f"{self.workdir} holds a run on other data: stream {name!r} had {then[0]} records then and has {this[0]} now "
                    f"(SHA-256 {then[1]} and {this[1]}, over records in their order); bring the data back, or use a new workdir"
                )

    def _format(self) -> Format:
        """That of the config; a day that it leaves open is that of the run's first start."""
        form = format_of(self.chosen, self.start.tokenizer)
        if form.date and not self.config.format.date and self.workdir and (self.workdir / MODEL_FILE).is_file():
            form = dataclasses.replace(form, date=load_description(self.workdir)[1].date or form.date)
        return form

    def _check_description(self) -> None:
        """ValueError where a template, a token or the tokenizer is another than the run had so far: its path may be the same."""
        assert self.workdir
        _, form, tokenizer = load_description(self.workdir)
        before, now = dataclasses.asdict(form), dataclasses.asdict(completed(self.format, self.start.tokenizer))
        other = [f"format.{name}" for name in now if before[name] != now[name]]
        if tokenizer.to_json() != self.start.tokenizer.to_json():
            other.append("the tokenizer of model.init")
        if other:
            raise ValueError(
                f"{self.workdir} holds a run with other tokens: {', '.join(other)} changed since it began; bring it back, or use "
                "a new workdir"
            )

    def _describe_run(self, resumed: bool) -> None:
        """Only now, since a run of another config, architecture or data must keep its own description."""
        assert self.workdir
        keep_config(self._given, self.workdir / "config.json")
        data, contents = self.workdir / DATA_FILE, self.stream.contents()
        if resumed and (self.workdir / MODEL_FILE).is_file():
            self._check_description()
        if resumed and data.exists():  # a run of an older version has none
            self._check_data(data, contents)
        if jax.process_index() == 0:
            write_json(data, contents)
            self._describe_model(self.workdir)

    def _writer(self, first: int) -> MetricWriter:
        assert self.workdir
        run = self.config.run
        project = (
            {"project": run.wandb, "name": self.workdir.name, "config": self._given.to_dict()} if run.wandb else None
        )
        return MetricWriter(self.workdir, resume_step=first, tensorboard=run.tensorboard, wandb=project)

    def _watch(self) -> Watch | None:
        """Of the evaluations that may end the run; the best state is kept in WORKDIR/best, a run directory of its own."""
        entries = {
            name: entry
            for name, entry in self.config.evals.items()
            if isinstance(entry, AnswersEval) and entry.patience
        }
        if not entries:
            return None
        if len(entries) > 1:
            raise ValueError(
                f"config.evals has patience in {' and '.join(entries)}, and best/ holds the best state of one; keep it in one"
            )
        assert self.workdir
        watch = Watch(entries, functools.partial(self._keep, self.workdir / "best"))
        watch.recall(read_metrics(self.workdir / "metrics.jsonl"))
        return watch

    def _keep(self, folder: Path, step: int, state: State) -> None:
        self._describe_model(folder)
        with Checkpoints(folder / CHECKPOINTS, 1, None, ("frozen",)) as saved:
            saved.save(step, saved_part(state), {}, wait=True)

    def _describe_model(self, folder: Path) -> None:
        save_description(
            folder, self.start.config, self.format, self.start.tokenizer, self.config.objective, self.chosen.saved(),
            self.program.roles.main if self.program.roles.others else "",
        )  # fmt: skip

    def _derived(self) -> Any:
        """What the log adds to a step's metrics."""
        per_token = flops_per_token(
            self.program, self._started(), self.config.data.row_tokens, self.chosen.language_model
        )

        def describe(scalars: Mapping[str, float]) -> dict[str, float]:
            speed = scalars.get("tokens_per_second")
            rate = float(self.program.rate(int(scalars["step"]) - 1))
            more = {
                "learning_rate": rate, **self._encoded(), **self.source.metrics(int(scalars["step"])),
                **self.chosen.describe(scalars),
            }  # fmt: skip
            return more | ({"mfu": mfu(per_token * speed, dtype=self.start.config.dtype)} if speed else {})

        return describe

    def _encoded(self) -> dict[str, float]:
        """What encoding had to change so far: `cut_groups` always, the other counts where there are any."""
        counts = self.stream.counts
        others = {f"encoding/{name}": float(count) for name, count in counts.items() if count and name != "cut"}
        return {"cut_groups": float(counts["cut"])} | others

    def _evaluations(self) -> dict[str, Any]:
        """Of `config.evals`, as functions of the state."""
        encoder = Encoder(self.start.tokenizer, self.format, row_tokens=2 * self.format.max_length)
        tokens = batch_tokens(self.mesh, self.rules)

        def scorer(rewards: methods.Rewards, params: Any) -> RewardScorer:
            return RewardScorer(rewards, params, encoder, tokens)

        def at(measure: Measure, state: State) -> Mapping[str, float]:
            return measure(parameters.merge(state.trainable, state.frozen))

        further = {
            name: functools.partial(scorer, self._measure(name)) for name in self.chosen.measures(self.program.model)
        }
        written = answers.evaluations(self.config, self._scene) if self.chosen.language_model else {}
        entries = {name: entry for name, entry in self.config.evals.items() if name not in written}
        scored = evaluators_from(entries, functools.partial(scorer, self._score), further)
        found = {name: (every, functools.partial(at, measure)) for name, (every, measure) in scored.items()} | written
        return {name: (every or self.config.run.steps, found[name][1]) for name, (every, _) in found.items()}


def _scorer(path: str) -> Scorer:
    return RewardModel.load(path).scorer


def open_workdir(workdir: Path) -> None:
    """Makes the directory; an OSError that says what to do where it cannot be written, a ValueError where it is a URL."""
    refuse_url(workdir, "--workdir=")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise OSError(
            f"--workdir={workdir} cannot be written ({error.strerror}); choose or free another one"
        ) from error
