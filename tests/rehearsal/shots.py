"""The pictures in docs/images: which pages, and where."""

import json
from pathlib import Path

from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tests.rehearsal.pictures import browser, shoot
from tests.rehearsal.stage import Stage


class Gallery:
    """Takes pictures, or does nothing where there is no browser or nobody asked."""

    def __init__(self, stage: Stage, folder: Path | None) -> None:
        self._stage, self._folder = stage, folder
        if folder is None:
            stage.say("No pictures: --pictures names no folder")
        elif browser() is None:
            stage.say("No pictures: there is no Chromium here (Debian: apt-get install chromium)")
            self._folder = None
        else:
            folder.mkdir(parents=True, exist_ok=True)

    def release(self, run: str) -> None:
        """A release that waits for a person."""
        self._take("prefect-release.png", f"{self._stage.ui}/artifacts/artifact/{_artifact(run, 'release')}", 900)

    def transfer(self, run: str, results: dict[str, Run]) -> None:
        ui = self._stage.ui
        self._take("prefect-run.png", f"{ui}/runs/flow-run/{run}", 1000)
        self._take("prefect-artifacts.png", f"{ui}/artifacts", 900)
        self._take("prefect-results.png", f"{ui}/artifacts/artifact/{_artifact(run, 'results')}", 1100)
        self._take("prefect-blocks.png", f"{ui}/artifacts/artifact/{_artifact(run, 'blocks')}", 640)
        ids = [found.info.run_id for found in results.values()]
        experiment = next(iter(results.values())).info.experiment_id
        about = f"runs={json.dumps(ids)}&experiments={json.dumps([experiment])}"
        self._take("mlflow-compare.png", f"{self._stage.mlflow}/#/compare-runs?{about}", 2000, cut=330)

    def _take(self, name: str, url: str, height: int, cut: int = 0) -> None:
        if self._folder is not None:
            shoot(url, self._folder / name, height=height, cut=cut)
            self._stage.say(f"Picture: {name}, {(self._folder / name).stat().st_size / 1000:.0f} kB")


def _artifact(run: str, key: str) -> str:
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return str(next(found.id for found in client.read_artifacts(artifact_filter=chosen) if found.key == key))
