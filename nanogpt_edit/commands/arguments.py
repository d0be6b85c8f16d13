"""What each verb is told, as dataclasses; nothing heavy is imported, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.settings import Precision
from nanogpt_edit.data.splits import ProblemsConfig
from nanogpt_edit.data.world.world import WorldConfig
from nanogpt_edit.editing.config import EditConfig, SweepConfig
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.pipeline.recipe import GRPO_ALONE, SFT_ALONE, ModelConfig, Recipe, load_recipe, packaged_recipes
from nanogpt_edit.pipeline.trackers.tracker import TrackerName
from nanogpt_edit.tracing.config import Site, TraceConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain_config import BaseText, PretrainConfig
from nanogpt_edit.training.sft_config import SFTConfig

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Split = Literal["validation", "test", "train"]


@dataclass(frozen=True)
class Run:
    """Run a recipe: pretrain, SFT, GRPO, evaluate, edit, report.

    The recipe comes first: the name of a packaged one, or a path to a .toml file. Any field of it can be overridden.
    Finished stages are skipped and a half-finished one is resumed. Exits with 3 when an expectation fails.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    track: TrackerName | None = None
    """Tell a tracker of every number while it goes, and of completions and the report; offline, in the run's folder or
    the tracker's own, unless the tracker is set up otherwise. Each is an extra: pip install 'nanogpt-edit[wandb]'."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every stage is told."""

    out: Path
    """Folder for the model, its log and its settings, laid out like a run's."""
    seed: int = 0
    """Chooses everything random; the same seed gives the same numbers."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """CPU threads (None: torch's own choice)."""
    shard: bool = False
    """Under torchrun, divide the weights over the processes (FSDP2) where one process cannot hold them; else each has
    all of them (DistributedDataParallel)."""


@dataclass(frozen=True, kw_only=True)
class Training(Common):
    """What every stage that trains is told."""

    precision: Precision = "auto"
    """Of matrix products in training: bfloat16, float32, or auto (bfloat16 on a GPU that has it)."""
    track: TrackerName | None = None
    """Tell a tracker of every number while it goes; offline unless the tracker is set up otherwise. Each is an extra:
    pip install 'nanogpt-edit[wandb]'."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Train a new model on plain text: the embedded world, the problems, and pretrain.text. It is saved in OUT/base."""

    model: ModelConfig = ModelConfig()
    world: WorldConfig = WorldConfig()
    problems: ProblemsConfig = ProblemsConfig()
    pretrain: PretrainConfig = PretrainConfig()


@dataclass(frozen=True, kw_only=True)
class SFT(Training):
    """Fine-tune a model on worked solutions; the weights with the lowest validation loss are saved in OUT/sft.

    With sft.replay above 0, sft.replay_source or pretrain.text is mixed in against forgetting, and the embedded world
    where the model was pretrained on it.
    """

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    world: WorldConfig = WorldConfig()
    problems: ProblemsConfig = ProblemsConfig()
    pretrain: BaseText = BaseText()
    sft: SFTConfig = SFT_ALONE


@dataclass(frozen=True, kw_only=True)
class GRPO(Training):
    """Improve a model by reinforcement learning on problems with known answers; it is saved in OUT/grpo."""

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt; it should know
    the answer format (see sft)."""
    world: WorldConfig = WorldConfig()
    problems: ProblemsConfig = ProblemsConfig()
    grpo: GRPOConfig = GRPO_ALONE


@dataclass(frozen=True, kw_only=True)
class Edit(Common):
    """Write facts into a model's weights. The model is saved in OUT/edited, the patch and its scores in OUT/edits.

    For a model in the folder of a run, what is not given here is as in the run's recipe.toml.
    """

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    facts: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FACTS")]
    """A .jsonl or .json file of facts, or facts50, which comes with the package."""
    world: WorldConfig = WorldConfig()
    problems: ProblemsConfig = ProblemsConfig()
    pretrain: BaseText = BaseText()
    edit: EditConfig = EditConfig()
    recipe: str | None = None
    """Take the settings of a recipe, by its name or as a .toml file (also the sweep.toml that --sweep writes); flags go
    before it. (None: of the run whose folder the model stands in, where it stands in one.)"""
    every_form: bool = True
    """Ask the edited facts in every form, too (denied, followed further, other facts of the subject), and read how far
    unrelated text moved: the larger part of scoring, which --no-every-form leaves out."""
    sweep: bool = False
    """Do not edit: choose layers, λ, clamp and KL for this model by trials on the facts, half of which are kept to
    confirm the choice. The settings are written to OUT/sweep.toml, the [edit] part of a recipe."""
    grid: SweepConfig = SweepConfig()


@dataclass(frozen=True)
class Sample:
    """Write completions of a prompt.

    In a terminal thinking is dim, the answer bright, and a control character is shown and not obeyed; a pipe gets the
    text exactly as it is.
    """

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    prompt: str
    """What the model continues; a question is given as it stands, without tags."""
    chat: bool = False
    """The prompt is a message: put it into the model's chat template, as a user's."""
    system: str | None = None
    """With --chat: a system message before it."""
    n: int = 1
    """Completions."""
    transcript: bool = False
    """Show each completion token by token."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on word problems, simple arithmetic and non-math prompts, with 95% intervals over problems.

    A model in the folder of a run is measured as its report measures it, on facts and held-out text too; what is not
    given here is as in the run's recipe.toml.
    """

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    split: Split | None = None
    """Which problems: decide on validation; touch test once, at the end (None: in a run test, as its report does; else
    validation)."""
    out: Path | None = None
    """Folder for the metrics (.json) and every completion (.jsonl), as `compare` reads them (None: only print)."""
    seed: int = 0
    """Cuts the validation problems from the training problems, and draws the embedded world's."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    problems: ProblemsConfig = ProblemsConfig()
    world: WorldConfig = WorldConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    json: bool = False
    """Print JSON in the place of the table."""


@dataclass(frozen=True)
class Compare:
    """Compare two evaluations of the same problems: paired differences with intervals, and what n could have shown."""

    before: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BEFORE")]
    """Records of an evaluation (its .jsonl file or its --out folder), or a stage of a run (runs/tiny/sft)."""
    after: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AFTER")]
    """The same for the other checkpoint."""
    json: bool = False
    """Print JSON in the place of the table."""


@dataclass(frozen=True)
class Serve:
    """Serve models: a playground in the browser, and an HTTP API that OpenAI's clients speak. Ctrl-C ends it.

    Texts that are being written then are finished first. Needs the extra: pip install 'nanogpt-edit[serve]'.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
    """A run's folder (its checkpoints: base, sft, grpo, edited), model directories, hub names, .gguf files,
    pip:NAME==VERSION, nanoGPT ckpt.pt files; and patches of these models, each offered as MODEL+PATCH."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only, another one needs a token."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """What everybody who asks must bring: Authorization: Bearer TOKEN."""
    names: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(none)")] = ()
    """Further names that this server is reached by; a request for another one is refused."""
    origins: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(none)")] = ()
    """Sites whose pages may ask (https://example.org); by default the server's own page alone."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""


@dataclass(frozen=True)
class Watch:
    """Watch a run in the browser: its stages, curves, rollouts token by token, ledger and report, read again while
    `run` works in another terminal; its models can be asked and edited as soon as they are there. Ctrl-C ends it.

    Needs the extra: pip install 'nanogpt-edit[serve]'.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    port: int = 0
    """Port to listen on, on this machine only; 0 takes a free one."""
    open: bool = True
    """Open the page in the browser; else only its address is printed."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""


@dataclass(frozen=True)
class Trace:
    """Causal tracing: corrupt the subject, restore one token's state at one layer, see how much of the answer returns.

    Of one prompt the table shows points of probability; the subject's tokens are marked with *. Of --facts it shows the
    average over the facts that the model recalls, by kind of token, with 95% intervals.
    """

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    prompt: str | None = None
    """Text that ends right before the answer."""
    subject: str | None = None
    """What the prompt is about; it occurs in the prompt."""
    target: str | None = None
    """The answer to follow (None: what the model itself says next)."""
    facts: str | None = None
    """Instead of a prompt: a .jsonl or .json file of facts, or facts50, which comes with the package."""
    out: Path | None = None
    """For a prompt a .svg or .png file, the heat map of `site`; for facts a folder for the numbers and all heat maps
    (None: only print)."""
    site: Site = "resid_post"
    """Which site a prompt's heat map shows."""
    sweep: Path | None = None
    """For facts: the sweep.jsonl of `edit --sweep` on this model; edit success per layer is drawn over the trace."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, …"""
    trace: TraceConfig = TraceConfig()


@dataclass(frozen=True)
class Report:
    """Write report.html, report.md and summary.json of a run, whole or half-way; or compare two runs in pairs.

    Nothing is trained or measured.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Folder of the run; of two runs, to compare them on the same problems and facts (no report is written then)."""
    figures: Path | None = None
    """Folder for every figure of the report as SVG and PNG (None: they are in the report only)."""
    out: Path | None = None
    """Of two runs: an .html file for the comparison (None: only print it)."""

    def __post_init__(self) -> None:
        if len(self.runs) not in (1, 2):
            raise UserError(f"has {len(self.runs)}; name one run, or two to compare.", field="runs")
        if len(self.runs) == 1 and self.out is not None:
            raise UserError("is the page of two runs compared; name both runs.", field="out")
        if len(self.runs) == 2 and self.figures is not None:
            raise UserError("are those of one run's report; name one run.", field="figures")
        if self.out is not None and self.out.suffix != ".html":
            raise UserError(f"is {self.out}; give a file that ends in .html.", field="out")


@dataclass(frozen=True)
class Ledger:
    """Print what each step of a run gained and cost: skills by checkpoint, with intervals. Nothing is written."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    json: bool = False
    """Print the run's summary.json in the place of the table."""


@dataclass(frozen=True)
class Info:
    """Family, sizes, parameters, memory, tokenizer, fingerprint, and what was done to a model."""

    model: Model
    """A model directory, a hub name (gpt2), a .gguf file, pip:NAME==VERSION, or a nanoGPT ckpt.pt."""
    json: bool = False
    """Print JSON in the place of the table."""


@dataclass(frozen=True)
class Push:
    """Put a model directory on the Hugging Face hub, with its card and patches: what goes there is listed first.

    The repository is made, and is private. `hf auth login` (or HF_TOKEN) says who you are.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model directory."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """OWNER/NAME; without an owner it is yours."""
    public: bool = False
    """Let everybody see it."""
    update: bool = False
    """Put it in the place of the model in a repository that is there; its history keeps that."""
    dry_run: bool = False
    """Only list what would be sent."""


@dataclass(frozen=True)
class Pull:
    """Copy a model of the Hugging Face hub into a folder, with its card and patches, whole or not at all."""

    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """OWNER/NAME on the hub."""
    out: Path
    """The folder, which is not there yet."""
    revision: str | None = None
    """A branch, a tag or a commit (None: the newest)."""


@dataclass(frozen=True)
class Completion:
    """Print a script that completes verbs and flags with the tab key.

    For bash: nanogpt-edit completion bash > ~/.local/share/bash-completion/completions/nanogpt-edit. For zsh: the same
    with zsh, into a file _nanogpt-edit in a folder of $fpath.
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
    """Whose script."""


def named_recipe(arguments: list[str], *, verb: str) -> tuple[str, Recipe, list[str]]:
    """The recipe that comes first among the arguments: its name, itself, and the other arguments.

    Raises UserError when none is named; only --help may stand without one, and shows the packaged tiny's fields.
    """
    asks_help = bool({"-h", "--help"} & set(arguments))
    if asks_help and arguments[0].startswith("-"):
        arguments = ["tiny", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            f"name the recipe first, as in: nanogpt-edit {verb} tiny --out runs/tiny. "
            f"Packaged: {', '.join(packaged_recipes())}; a path to a .toml file works too."
        )
    return arguments[0], load_recipe(arguments[0]), arguments[1:]


KINDS: dict[str, type[Any]] = {
    "pretrain": Pretrain,
    "sft": SFT,
    "grpo": GRPO,
    "edit": Edit,
    "sample": Sample,
    "evaluate": Evaluate,
    "compare": Compare,
    "serve": Serve,
    "watch": Watch,
    "trace": Trace,
    "ledger": Ledger,
    "report": Report,
    "info": Info,
    "push": Push,
    "pull": Pull,
    "completion": Completion,
}


def show_help(verb: str, arguments: list[str]) -> None:
    """Print every argument of a verb, and exit; of one with a recipe, as the named recipe has them."""
    if verb in KINDS:
        parse(KINDS[verb], ["--help"], verb=verb)
        return
    name, recipe, _ = named_recipe(arguments, verb=verb)
    parse(Run, ["--help"], verb=f"{verb} {name}", default=Run(recipe=recipe, out=Path("runs") / recipe.name))
