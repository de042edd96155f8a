"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Artefact store and MLflow database [default: .bico, or BICO_HOME].")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Artefact store: a folder, file:///path, or a bucket (s3://…/prefix, gs://…, az://…) [default: in home].",
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda [default: auto].")]
PickleOption = Annotated[
    bool | None,
    typer.Option(
        "--allow-pickle", help="Read tensors from checkpoints that torch.save wrote; refused otherwise.", is_flag=True
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder with train.parquet and test.parquet; repeatable.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", help="Of text models: probe, or text (the answer's words) [default: probe].")
]
