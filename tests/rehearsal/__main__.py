"""python -m tests.rehearsal [--log FILE] [--pictures FOLDER] [--keep]"""

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from tests.rehearsal.stage import ROOT, Stage, lay_out, release, servers

LIMIT = 15 * 60


def main() -> int:
    parser = argparse.ArgumentParser(description="Start everything, use it, check it, shut it down.")
    parser.add_argument("--log", type=Path, help="where the log goes, besides standard output")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots; none are taken without it")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and databases")
    asked = parser.parse_args()
    # A shell that starts this in the background has it ignore interrupts; the worker, which ends by one, would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, started = Path(mkdtemp(prefix="bico-rehearsal-")), time.monotonic()
    lines: list[str] = []

    def say(text: str) -> None:
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT"))
        lines.append(f"{time.monotonic() - started:6.0f} s  {text}")
        print(lines[-1], flush=True)

    stage = Stage(folder, say)
    os.environ.update(stage.environment)
    lay_out(stage)
    failed = 0
    try:
        with servers(stage):
            perform(stage, asked.pictures)
        took = time.monotonic() - started
        say(f"Rehearsal passed in {took:.0f} s; load of the machine: {os.getloadavg()[2]:.0f}")
        if took > LIMIT:
            say(f"That is more than the {LIMIT} s it should take: does something else run here?")
    except AssertionError as error:
        failed = 1
        say(f"FAILED: {error}")
    if asked.log:
        asked.log.write_text("".join(f"{line}\n" for line in lines))
    if asked.keep or failed:
        print(f"Logs and databases: {folder}")
    else:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return failed


def perform(stage: Stage, pictures: Path | None) -> None:
    """The play; imports Prefect and MLflow, which read the environment."""
    from bico.reporting.provenance import machine
    from tests.rehearsal import acts, checks
    from tests.rehearsal.shots import Gallery

    stage.say(machine(("prefect", "prefect-dask", "distributed", "mlflow", "moto", "torch")))
    acts.deploy(stage)
    acts.check_schedules(stage)
    release(stage, "mini-b", "2026-10")
    targets = {"2026-10": "zoo:mini-b", "2026-11": "zoo:mini-b-plus"}
    runs = acts.transfers(stage, targets)
    results = checks.recorded(stage, runs)
    checks.same_as_alone(stage, targets, results)
    checks.compared(stage, results)
    acts.garbage_on_schedule(stage)
    acts.watch(stage, publish=True)
    release(stage, "mini-b-plus", "2026-11")
    shots = Gallery(stage, pictures)
    acts.watch(stage, publish=False, meanwhile=shots.release)
    shots.transfer(runs["2026-10"], results)
    checks.published(stage)
    checks.no_secret(stage)


if __name__ == "__main__":
    sys.exit(main())
