"""Defaults that every experiment shares; each config file sets what makes it differ."""

from ml_collections import ConfigDict

from rmjax.parallel.mesh import RULES


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = _model()
    config.format = _format()
    config.objective = "preference"  # preference | language_model
    config.loss = _loss()
    config.trainable = "/layers/|final_norm|head"  # regular expression over parameter paths; the rest is frozen
    config.adapter = _adapter()  # with one, only its parameters and the head are trained, of `trainable`
    config.data = _data()
    config.gradient = _gradient()
    config.meta_data = _meta_data()  # unlabeled groups of samples of the current policy; gradient.name = meta only
    config.optimizer = _optimizer()
    config.mesh = _mesh()
    config.sharding = ConfigDict(dict(RULES))  # logical axis → mesh axes, () for none: see rmjax/parallel/mesh.py
    config.hosts = _hosts()  # several processes; see docs/multihost.md
    config.evals = ConfigDict()  # NAME → see configs/polar/pretrain.py
    config.run = _run()
    return config


def _model() -> ConfigDict:
    model = ConfigDict()
    model.init = "smollm2"  # smollm2 | a .gguf file | a run directory | random (SmolLM2's sizes unless set below)
    model.layers = 0  # first k layers only, for small machines; 0 = all
    model.frozen_layers = 0  # of them, this many from the bottom stay as they are and cost a forward pass only
    model.preset = ""  # random weights only: sizes by name (rmjax/models/presets.py); empty = those of SmolLM2
    model.width = 0  # random weights only: hidden size; 0 = preset's or SmolLM2's (576), as for the next three
    model.heads = 0  # query heads
    model.kv_heads = 0  # key-value heads
    model.mlp_width = 0  # hidden size of the MLP
    model.dtype = "float32"  # of activations: float32 | bfloat16; head and loss are fp32 always
    model.param_dtype = "float32"  # of parameters: float32 | bfloat16
    model.remat = "none"  # none | dots | attention | full: each computes more again in the backward pass
    model.attention = "dense"  # dense: for short rows | memory grows with row_tokens only: blockwise, pallas (TPU, GPU)
    model.attention_block = 512  # tokens; blockwise: heads · block² scores of a row are in memory at once
    return model


def _format() -> ConfigDict:
    form = ConfigDict()
    form.split_token = "<file_sep>"  # between the reference half and the candidate half
    form.reward_token = "<empty_output>"  # read-out
    form.max_length = 1024  # tokens: one sequence (POLAR: 16384)
    form.max_response_length = 384  # tokens: reference, candidate (POLAR: 4096)
    form.response_cut_side = "right"  # right keeps an answer's head (official trainer) | left keeps its tail
    return form


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.name = "bradley_terry"  # bradley_terry | focal | listwise
    loss.label_smoothing = 0.0  # share of flipped labels assumed (bradley_terry only)
    loss.penalty = ""  # none when empty | log_barrier | squared
    loss.penalty_weight = 0.01  # factor of the penalty
    return loss


def _adapter() -> ConfigDict:
    adapter = ConfigDict()
    adapter.kind = ""  # none when empty | lora | rslora | dora | loramoe
    adapter.pattern = "mlp/(gate|up|down)$"  # regular expression over paths of Dense modules, as backbone/layers/mlp/up
    adapter.rank = 4  # inner width, of each expert
    adapter.alpha = 32.0  # scale is alpha / rank; rslora: alpha / √rank
    adapter.dropout = 0.0  # share of the adapter's inputs dropped in training, drawn for each expert
    adapter.experts = 6  # loramoe, as what follows (official script: 8)
    adapter.top_k = 0  # experts that a token keeps; 0 = all, as in the paper
    adapter.router = "linear"  # linear: one for each adapted Dense | block: one for those of an MLP or attention
    adapter.balance = "code"  # form of the balancing constraint: paper (σ²/μ) | code (σ²/μ²)
    adapter.beta = 0.0  # its factor in the loss; above 0 every record needs a `type`
    adapter.delta = 0.1  # its tilt: 0 treats types alike, 1 separates them
    adapter.reduce = "mean"  # of the constraint over routers and layers: mean | sum (official code)
    adapter.length_normalized = True  # a sample's mass is a mean over its tokens; False: a sum (paper, official code)
    adapter.expert_types = ()  # type that each expert serves; empty: the first half 0, the second half 1
    return adapter


def _data() -> ConfigDict:
    data = ConfigDict()
    data.kind = "pool"  # pool (who wrote what) | comparisons (ranked answers) | texts (language model)
    data.path = ""  # a file, shipped:NAME, tfds:NAME, or a real set's name (see docs/data.md)
    data.root = "../shared/data"  # where the real sets lie
    data.split = "all"  # real sets: all | train | test (a fifth of the prompts, by hash)
    data.policies = "seen"  # pool: seen | unseen | all
    data.prompts = "seen"  # pool: seen | unseen | all
    data.negatives = 1  # pool: other-policy samples a group
    data.hard_negatives = 0.0  # pool: share of negatives from policies of the same kind
    data.references = 1  # pool: same-policy samples beside the positive
    data.wrapper = "sft"  # pool: POLAR wrapper, sft | pretrain
    data.reference = "required"  # comparisons: required | optional
    data.end_token = "<|im_end|>"  # texts: ends each text; empty = nothing does
    data.rows = 8  # rows a batch (over all devices)
    data.row_tokens = 512  # tokens a row; short rows are fast, a dense mask costs T per token
    data.groups = 8  # groups a row at most
    data.candidates = 2  # candidates a group at most
    data.streams = 1  # streams that the rows are packed from; processes share them out (docs/multihost.md)
    data.epochs = 0  # passes over the data; 0 = as many as the steps take
    data.prefetch = 2  # batches made ahead
    return data


def _gradient() -> ConfigDict:
    gradient = ConfigDict()
    gradient.name = "plain"  # plain | meta (MetaRM: the gradient after an ascent on config.meta_data)
    gradient.mode = "plain"  # meta, unit of the ascent: plain | parameter_norm | step_norm | preconditioned
    gradient.inner_learning_rate = 5e-6  # meta: η, length of the ascent in that unit (the paper's, for plain)
    gradient.order = 1  # meta: 1 as in the paper | 2 differentiates through the ascent as well
    gradient.warmup_steps = 0  # meta: steps without ascent at the start, for a head that starts at zero
    return gradient


def _meta_data() -> ConfigDict:
    meta_data = ConfigDict()
    meta_data.kind = "pool"  # pool (samples by policy) | comparisons (a file with `outputs`; their order is not read)
    meta_data.path = ""  # as data.path
    meta_data.root = "../shared/data"  # where the real sets lie
    meta_data.split = "all"  # real sets: all | train | test
    meta_data.policies = "seen"  # pool: seen | unseen | all
    meta_data.prompts = "seen"  # pool: seen | unseen | all
    meta_data.names = ""  # pool: regular expression that a policy's whole name must match; empty = all of these
    meta_data.mixed = False  # pool: True puts all these policies' samples for a prompt into one group
    meta_data.samples = 5  # k, samples a group; groups with fewer take what they have
    meta_data.references = 0  # pool: further samples of the group that become its references
    meta_data.wrapper = "sft"  # pool: POLAR wrapper, sft | pretrain
    meta_data.rows = 8  # rows a batch (over all devices)
    meta_data.row_tokens = 512  # tokens a row
    meta_data.groups = 8  # groups a row at most
    return meta_data


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.learning_rate = 1e-5  # peak
    optimizer.warmup = 0.03  # share of the steps
    optimizer.final = 0.1  # end of the cosine, share of the peak
    optimizer.b1 = 0.9  # Adam: share kept of the gradient's running mean, per step
    optimizer.b2 = 0.95  # Adam: share kept of the squared gradient's running mean, per step
    optimizer.weight_decay = 0.0  # AdamW: share of a parameter removed per step, times the learning rate
    optimizer.clip = 1.0  # global gradient norm
    optimizer.microbatches = 1  # parts that a batch is run in, inside one step
    return optimizer


def _mesh() -> ConfigDict:
    mesh = ConfigDict()
    mesh.data = -1  # devices that share the batch's rows; -1 = the rest
    mesh.fsdp = 1  # devices that share the rows and the parameters
    mesh.tensor = 1  # devices that share each matrix's heads or columns
    mesh.context = 1  # devices that share each row's tokens
    mesh.dcn_data = 1  # factor of `data` between slices (without them: processes), on the slower network
    mesh.dcn_fsdp = 1  # factor of `fsdp` between slices
    return mesh


def _hosts() -> ConfigDict:
    hosts = ConfigDict()
    hosts.coordinator = ""  # ADDRESS:PORT of process 0 | auto (Cloud TPU) | none | empty: what the environment says
    hosts.processes = 0  # with ADDRESS:PORT: how many there are
    hosts.index = -1  # with ADDRESS:PORT: number of this one, from 0
    hosts.timeout = 60  # seconds without a sign of life after which a process counts as dead and the others end
    return hosts


def _run() -> ConfigDict:
    run = ConfigDict()
    run.steps = 1000  # updates of the parameters
    run.compiler_options = ()  # "NAME=VALUE", XLA's own for the platform of the run
    run.seed = 0  # of the random weights, the order and the draws
    run.log_every = 10  # steps
    run.save_every = 200  # steps
    run.keep = 2  # newest checkpoints kept
    run.keep_every = 0  # keep every so many steps for good; 0 = none
    run.tensorboard = False  # True: metrics also to WORKDIR/tensorboard
    run.wandb = ""  # W&B project; empty = off
    return run


def pool_eval(
    policies: str, path: str = "shipped:policy_pool", every: int = 0, per_prompt: int = 4, wrapper: str = "sft"
) -> ConfigDict:
    """An evaluation: same-policy against other-policy on held-out prompts."""
    entry = ConfigDict()
    entry.kind = "pool"
    entry.path = path  # pool file
    entry.policies = policies  # seen | unseen | all
    entry.prompts = "unseen"  # seen | unseen | all
    entry.per_prompt = per_prompt  # triples drawn from each prompt
    entry.wrapper = wrapper  # POLAR wrapper, sft | pretrain; as in training
    entry.every = every  # steps; 0 = first and last only
    return entry


def comparisons_eval(path: str, every: int = 0, root: str = "../shared/data", split: str = "all") -> ConfigDict:
    """An evaluation: preference accuracy on ranked answers."""
    entry = ConfigDict()
    entry.kind = "comparisons"
    entry.path = path  # file, shipped:NAME, or a real set's name
    entry.root = root  # where the real sets lie
    entry.split = split  # real sets: all | train | test
    entry.every = every  # steps; 0 = first and last only
    return entry


def samples_eval(path: str, every: int = 0, kind: str = "pool", names: str = "", mixed: bool = False) -> ConfigDict:
    """An evaluation: the distribution of |Δr| between samples for one prompt, as in MetaRM's figure."""
    entry = ConfigDict()
    entry.kind = "samples"
    entry.source = kind  # pool | comparisons
    entry.path = path  # as data.path
    entry.root = "../shared/data"  # where the real sets lie
    entry.split = "all"  # real sets: all | train | test
    entry.policies = "all"  # pool: seen | unseen | all
    entry.prompts = "unseen"  # pool: seen | unseen | all
    entry.names = names  # pool: regular expression that a policy's whole name must match; empty = all of these
    entry.mixed = mixed  # pool: True puts all these policies' samples for a prompt into one group
    entry.references = 0  # pool: the first samples of a group become its references
    entry.wrapper = "sft"  # pool: POLAR wrapper, sft | pretrain
    entry.every = every  # steps; 0 = first and last only
    return entry
