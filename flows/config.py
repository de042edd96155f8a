"""What a transfer is asked to do: the schema of YAML files, deployments and the command line."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from bico.calibration.pseudo_labels import PseudoLabels
from bico.calibration.sampling import Sampling
from bico.calibration.shared_tokens import Between
from bico.data.reading import Reading, load_words, make_reading
from bico.errors import ConfigError, at_home, masked, nearest
from bico.finetune import FinetuneConfig
from bico.linalg.procrustes import MAP_RANK, Completion
from bico.methods.spec import Spec
from bico.methods.variant import searched, swept
from bico.models.experts import FARTHEST
from bico.models.families import spellings
from bico.reporting.names import short_name
from flows.commands.options import OnlyInFiles, Option
from flows.planning import experts as expert_names
from flows.planning.experts import Carried, carried, files_of, tasks_named

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


MethodSpec = Annotated[Spec, BeforeValidator(Spec.parse), PlainSerializer(str), WithJsonSchema({"type": "string"})]
"""A spec, spelt as text in files, deployments and on the command line."""


def _as_pairs(value: Any) -> Any:
    """A mapping, as YAML can hold it, spelt as on the command line."""
    return [f"{found}={shown}" for found, shown in value.items()] if isinstance(value, dict) else value


def _strength(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"alpha: {value!r} is no number; write numbers with commas between, or {AUTO}") from None


READING = ("image_column", "label_column", "text_columns", "prompts", "class_names", "test_share", "test_seed")
"""The fields that say how a folder of data is read."""

AUTO = "auto"
"""Stands for a strength that is searched."""

ALPHAS = {"anyOf": [{"type": "number"}, {"const": AUTO}, {"type": "array", "items": {"type": "number"}}]}

MANY = 2**31 - 1
"""More samples than any data set has: what is above is a slip, and overflows further on."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "methods": ["bico"],
        "samples": [50],
        "seeds": [0],
        "baselines": False,
        "oracle": False,
        "test_limit": 1000,
    },
    "full": {"baselines": True, "oracle": True},
}
"""What `--quick` and `--full` stand for; options given beside them win."""


class TransferConfig(BaseModel):
    """One transfer, or a sweep of them over tasks, methods, sample counts and seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: Annotated[str, Field(description=f"The model that was fine-tuned: {spellings()} in its library's format.")]
    target: str
    """The new base model."""
    tasks: Annotated[list[str], Field(min_length=1), Option("--task", "--tasks")]
    """Embedded tasks, or names of `data` folders; on the command line also `all`, for both."""
    data: list[Path] = []
    """A folder of data, or a table; its name is the name of its task (docs/your-own-data.md)."""
    image_column: str | None = None
    """The data's column of pictures, where its name does not tell."""
    label_column: str | None = None
    """The data's column of classes."""
    text_columns: list[str] = []
    """The data's columns of text that the model is shown."""
    prompts: Annotated[list[str], Option("--prompt", metavar="TEMPLATE", whole=True)] = []
    """Of pictures, a template with {} for the class name; of texts, one with the columns' names in braces."""
    class_names: Annotated[list[str], BeforeValidator(_as_pairs), Option(metavar="NAME,...")] = []
    """What the data's classes are called: names in their order, or FOUND=SHOWN for each."""
    test_share: float | None = None
    """The share of each class of a single split that is kept for testing."""
    test_seed: int = 0
    """Seed of that draw."""
    methods: Annotated[
        list[MethodSpec], Field(min_length=1), Option(metavar="METHOD,...", default="bico,theseus,naive")
    ] = list(map(Spec.parse, ("bico", "theseus", "naive")))
    """What is done to the target: methods with their settings and last steps, such as gradfix:mask=force or bico+head."""
    samples: Annotated[list[Annotated[int, Field(ge=0, le=MANY)]], Field(min_length=1)] = [10, 20, 50, 100]
    """Calibration samples N (K per class for `sampling: per-class`); the sets are nested, and one pass serves all. 0 for
    no labels at all, where there are unlabelled inputs."""
    unlabelled: Annotated[int, Field(ge=0, le=MANY)] = 0
    """Training inputs that serve without their labels, beside the labelled ones: the expert's predictions stand in."""
    pseudo_labels: PseudoLabels = PseudoLabels.HARD
    """What of the expert's predictions becomes the target of the loss: hard (the class) or soft (probabilities)."""
    rivals: Annotated[Literal["none", "cheap", "all"], Option(default="all; with --expert: cheap")] = "all"
    """What a transfer has to beat at the same data, measured beside it: none, those in closed form, which cost less than a
    transfer (heads on the target as it is, last steps without transport), or all, with logistic heads and fine-tuning."""
    baselines: Annotated[bool | None, Option("--baselines/--no-baselines", " /--no-rivals", default="")] = None
    """An older spelling: yes is `rivals: all`, no is `rivals: none`."""
    sampling: Sampling = Sampling.RANDOM
    """How calibration samples are chosen."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)] = [0, 1, 2]
    """Seeds of the calibration draw."""
    loss: str | None = None
    """Of text models, the loss that fine-tuning takes and whose gradients are aligned: probe, text, pairs (of two texts,
    without classes), or completion (of a prompt) [default: probe; of decoders completion]."""
    completion: Completion = Completion.PARTIAL
    """What maps do outside the calibrated span: partial (nothing) or svd (the paper's plain map)."""
    rank: Annotated[int, Field(ge=0, le=MANY)] = MAP_RANK
    """How many directions a map keeps at most, the strongest first; 0 for all (the paper)."""
    between: Between = Between.LAST
    """Of two tokenizers, what becomes of the activations of tokens between ends that both share: the last one's, or their
    sum; gradients are summed either way."""
    alpha: Annotated[float, Option(words=(AUTO,), metavar=f"NUMBER,...|{AUTO}"), WithJsonSchema(ALPHAS)] = 1.0
    """How much of the task vector is added, never tuned on test data; several are rows of their own, as bico:alpha=2; auto
    searches it on the labels, as +search behind every method that carries the expert."""
    expert: Annotated[Path | None, OnlyInFiles] = None
    """One fine-tuned checkpoint of the source, for one task; `experts` are several."""
    experts: Annotated[
        list[str], BeforeValidator(expert_names.spelt), Option("--expert", metavar="[TASK=]FILE", whole=True)
    ] = []
    """A fine-tuned checkpoint of the source, a file or a folder, or the folder of a LoRA adapter (PEFT's), as often as wanted:
    a task's calibration serves all of its experts. Without any, the source is fine-tuned here."""
    expert_farthest: Annotated[float, Field(gt=0)] = FARTHEST
    """Refuse an expert that differs from the source by more than so many norms of its weights."""
    expert_head: Path | None = None
    """The expert's own classifier, in which the source's loss is taken and by which the expert is measured: the file of a
    linear one of the source's features (classes x width, and biases), or of text the folder of a
    ...ForSequenceClassification. The target keeps the head of its family."""
    pooling: str | None = None
    """Of text encoders whose folder does not say: how tokens become features, such as mean or cls [default: mean; cls beside
    the head of a ...ForSequenceClassification, which reads the first token]."""
    finetune: Annotated[FinetuneConfig | None, OnlyInFiles] = None
    """Fine-tuning protocol; by default chosen by the number of parameters that it changes."""
    oracle: Annotated[bool, Option(default="oracle; with --expert: no-oracle")] = True
    """Fine-tune the target directly too, as the upper reference."""
    test_limit: Annotated[int, Field(ge=1, le=MANY)] | None = None
    """Only the first so many test samples."""
    batch_size: Annotated[int, Field(ge=1, le=MANY)] = 32
    """Calibration samples per pass; changes memory, never the result."""
    export: Literal["best", "all", "none"] = "best"
    """Which updated models to write: per task the best one by held-out training samples, all, or none."""
    write: Literal["model", "adapter"] = "model"
    """How: as whole weights, or as LoRA adapters of the target in PEFT's layout. Then what is measured is what they hold."""
    adapter_rank: Annotated[int, Field(ge=1, le=MANY)] | None = None
    """Rank of the adapters [default: that of the expert's adapter]; a full fine-tune needs one."""
    register_as: Annotated[Annotated[str, Field(pattern=r"^[\w.-]+$")] | None, Option("--register", metavar="NAME")] = (
        None
    )
    """Register the written models in MLflow under this name (NAME-FOLDER each, if there are several)."""
    out: Path = Path("out")
    """Where tables, plots and models go."""

    @property
    def reading(self) -> Reading:
        """What is said of how the data's folder is read."""
        return make_reading({name: getattr(self, name) for name in READING}, "options")

    @property
    def title(self) -> str:
        """Names a run of it: models, tasks, methods, samples and seeds, without the folders of one machine."""
        expert = "" if self.expert is None else f" expert={expert_names.shown(self.expert)}"
        if self.experts:
            given = [expert_names.shown(expert_names.parse(one)[1]) for one in self.experts]
            expert = f" expert={_some(given)}" if len(given) == 1 else f" experts={_some(given)}"
        drawn = f"N={_some(self.samples)} seeds={_some(self.seeds)}"
        pair = f"{short_name(self.source)}-to-{short_name(self.target)}"
        return f"{pair} {_some(self.tasks)} {_some(self.methods)} {drawn}{expert}"

    @property
    def carried(self) -> dict[str, Carried]:
        """What is carried, by the name of its rows.

        Raises:
            ConfigError: If it is not clear of which task an expert is, or a task is left without one.
        """
        given = self.experts if self.expert is None else [*self.experts, str(self.expert)]
        return carried(self.tasks, given)

    @property
    def expert_files(self) -> list[Path]:
        """The experts' files and folders; none if the source is fine-tuned here."""
        return files_of(self.carried.values())

    @property
    def has_experts(self) -> bool:
        return self.expert is not None or bool(self.experts)

    @model_validator(mode="before")
    @classmethod
    def _named_by_experts(cls, values: Any) -> Any:
        """Who says of which tasks all experts are has said the tasks."""
        if not isinstance(values, dict) or values.get("tasks") is not None or not values.get("experts"):
            return values
        given = expert_names.spelt(values["experts"])
        named = tasks_named(given) if isinstance(given, list) else []
        return values | {"tasks": named} if named else values

    @model_validator(mode="before")
    @classmethod
    def _only_what_was_asked(cls, values: Any) -> Any:
        """Who brings an expert asks what arrives of it: what costs more than that is measured if it is asked for."""
        if not isinstance(values, dict):
            return values
        said = values.get("baselines")
        if not isinstance(said, bool | None):
            raise ValueError(f"baselines={said!r}: say yes or no, or rivals: none, cheap or all")
        asked = {} if said is None else {"rivals": "all" if said else "none"}
        usual = (
            {"oracle": False, "rivals": "cheap"} if values.get("expert") is not None or values.get("experts") else {}
        )
        return usual | asked | {name: value for name, value in values.items() if name != "baselines"}

    @field_validator("data", "expert", "expert_head", "out", mode="after")
    @classmethod
    def _at_home(cls, value: Path | list[Path] | None) -> Path | list[Path] | None:
        """A shell expands `~` neither in YAML nor behind the equals sign of an option."""
        return [at_home(path) for path in value] if isinstance(value, list) else value and at_home(value)

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, values: Any) -> Any:
        """`alpha: auto` says the same as a search behind every method, and several strengths as one method for each."""
        alpha = values.get("alpha") if isinstance(values, dict) else None
        several: Any = alpha.split(",") if isinstance(alpha, str) and "," in alpha else alpha
        if alpha != AUTO and not isinstance(several, list):
            return values
        methods = values.get("methods", cls.model_fields["methods"].default)
        if isinstance(methods, list):
            specs = [Spec.parse(one) if isinstance(one, str | Spec) else one for one in methods]
            if alpha == AUTO or not isinstance(several, list):
                methods = [searched(one) if isinstance(one, Spec) else one for one in specs]
            else:
                strengths = [_strength(one) for one in several]
                methods = [
                    each for one in specs for each in (swept(one, strengths) if isinstance(one, Spec) else [one])
                ]
        return values | {"alpha": 1.0, "methods": methods}

    @field_validator("samples")
    @classmethod
    def _ascending(cls, samples: list[int]) -> list[int]:
        return sorted(set(samples))

    @model_validator(mode="after")
    def _some_samples(self) -> "TransferConfig":
        if 0 in self.samples and not self.unlabelled:
            raise ValueError("samples: 0 labels need inputs without labels; give `unlabelled` (--unlabelled 500)")
        return self

    @property
    def labelled(self) -> list[int]:
        """The sample counts at which there are labels."""
        return [count for count in self.samples if count]

    @field_validator("methods", "tasks", "seeds")
    @classmethod
    def _distinct(cls, values: list) -> list:
        return list(dict.fromkeys(values))


class Settings(BaseModel):
    """Where things run and are kept: never what comes out. Read from BICO_* environment variables."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    home: Path = Path(".bico")
    """Folder of the artefact store, MLflow's database and files."""
    store: Annotated[str, Field(validate_default=True)] = ""
    """Address of the artefact store: a folder, file:///path, s3://bucket/prefix, gs://bucket/prefix or
    az://container/prefix; without it, `store` under `home`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto takes CUDA if there is a usable device."""
    memory: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GB that calibration may take; blocks are served in several passes if they do not fit into one."""
    blockwise: Literal["auto", "always", "never"] = "auto"
    """Whether models stay on the disk and one block at a time is in memory: auto where they would not fit, in runs that carry
    LoRA adapters of decoders."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Processes of the local Dask cluster, one thread each."""
    dask_scheduler: str | None = None
    """Address of an existing Dask scheduler; without it a local cluster is started when there is work for it."""
    mlflow_uri: str | None = None
    """MLflow tracking address; without it SQLite under `home`."""
    experiment: str = "bico"
    """MLflow's experiment."""
    stage_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that one stage may take before the run fails; without it, as long as it takes."""
    keep_covariances: bool = False
    """Keep what maps are solved from. It is several times as large as the maps, and otherwise goes when they are solved."""
    allow_pickle: bool = False
    """Read checkpoints that `torch.save` wrote, tensors only; a pickle is refused otherwise."""

    @classmethod
    def from_environment(cls, **given: Any) -> "Settings":
        values = {
            name: os.environ[f"BICO_{name.upper()}"]
            for name in cls.model_fields
            if f"BICO_{name.upper()}" in os.environ
        }
        if "MLFLOW_TRACKING_URI" in os.environ:
            values.setdefault("mlflow_uri", os.environ["MLFLOW_TRACKING_URI"])
        values |= {name: value for name, value in given.items() if value is not None}
        return validated(cls, values, "settings")

    @field_validator("home")
    @classmethod
    def _usable(cls, home: Path) -> Path:
        home = at_home(home)
        if strange := {*"?#%"} & {*str(home.absolute())}:
            raise ValueError(
                f"{strange.pop()!r} in the path means something else in the address of MLflow's database; rename it"
            )
        return home

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str, info: ValidationInfo) -> str:
        """Workers may have another working directory."""
        if "://" in store or store.startswith("file:"):
            return store
        return str(at_home(Path(store or info.data.get("home", Path(".bico")) / "store")).absolute())

    @field_validator("store", "mlflow_uri", "dask_scheduler")
    @classmethod
    def _no_password(cls, address: str | None) -> str | None:
        """Settings are parameters of a flow run, which Prefect keeps and shows."""
        if address and masked(address) != address:
            raise ValueError(
                "keep passwords out of addresses: set MLFLOW_TRACKING_USERNAME and _PASSWORD, or the AWS_* keys"
            )
        return address

    def resolved_device(self) -> str:
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: this machine has no usable CUDA device; use --device cpu or auto.")
        return self.device


def _some(values: Sequence[Any]) -> str:
    """Values in a name: all of a few, the first ones of many.

    Example:
        >>> _some([1, 2]), _some(list("abcdefg"))
        ('1,2', 'a,b,c,d,+3')
    """
    return ",".join([*map(str, values[:4]), *([f"+{len(values) - 4}"] if len(values) > 4 else [])])


def make_config(values: dict[str, Any], origin: str) -> TransferConfig:
    """Builds a configuration from plain values.

    Arguments:
        origin: Where the values come from, for messages.

    Raises:
        ConfigError: One line that names the key, what is wrong, and the nearest valid key.
    """
    return validated(TransferConfig, values, origin)


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def validated(model: type[Any], values: dict[str, Any], origin: str) -> Any:
    """Builds a pydantic model; its complaint becomes one line.

    Raises:
        ConfigError: Naming the key, what is wrong, and for an unknown key the nearest valid one.
    """
    try:
        return model(**values)
    except ValidationError as error:
        # A misspelt key is missing under its right name too: the spelling is what to tell.
        first = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN_KEY)
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] in _UNKNOWN_KEY:
            *place, name = first["loc"]
            raise ConfigError(f"{origin}: unknown key {key!r}; {nearest(str(name), _keys_at(model, place))}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {key!r} is missing.") from None
        where = f"{key}={first['input']!r}: " if key else ""
        raise ConfigError(f"{origin}: {where}{first['msg'].removeprefix('Value error, ').rstrip('.')}.") from None


def _keys_at(model: type[Any], place: Iterable[str | int]) -> Iterable[str]:
    """The keys valid at a place inside a model: its own, or those of the model or dataclass that a field holds."""
    for part in place:
        if isinstance(part, str) and part in getattr(model, "model_fields", {}):
            held = _classes(model.model_fields[part].annotation)
            model = next((c for c in held if hasattr(c, "model_fields") or is_dataclass(c)), model)
    fields = model.model_fields if hasattr(model, "model_fields") else model.__dataclass_fields__
    return [name for name in fields if not name.startswith("_")]  # pydantic adds one of its own to dataclasses


def _classes(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation mentions, such as X in `list[X] | None`."""
    yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds no keys.
    """
    try:
        values = load_words(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write `key: value` lines.")
    if strange := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{path}: the key {strange[0]!r} is no text; write `key: value` lines.")
    return values


def read_config(path: Path, overrides: dict[str, Any]) -> TransferConfig:
    """Reads a YAML file; `overrides` win over it.

    Raises:
        ConfigError: If the file is missing, is not YAML, or a key in it is not known.
    """
    values = read_yaml(path)
    if "experts" in overrides:
        values.pop("expert", None)
    return make_config(values | overrides, str(path))
