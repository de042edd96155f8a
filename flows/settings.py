"""Where things run and are kept: what a machine has, and never what comes out."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from bico.errors import ConfigError, at_home, masked
from flows.validation import validated


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
