"""The way of somebody new: an expert and an ImageFolder of one's own, a plan, a quick run, its page, the model in open_clip.

    python -m benchmarks.newcomer

Each step is a command of the README, given as it stands there, in a process of its own; what it prints is kept and its time is
told. Expert and pictures are made beforehand. Writes benchmarks/results/newcomer.md, and what was printed to out/newcomer.
"""

import html
import os
import re
import shlex
import shutil
import time
from pathlib import Path

from benchmarks.commands import ROOT, Took, bico, python, write
from benchmarks.measure import table
from flows.planning.disk import size_of

RESULTS = Path(__file__).parent / "results" / "newcomer.md"
SCRATCH = ROOT / "out" / "newcomer"
MODEL = "results/models/marks-bico-n50-seed0"
TRANSFER = "--source zoo:mini-a --target zoo:mini-b --data data/marks --expert expert.safetensors --quick --out results"
IN_OPEN_CLIP = """
import open_clip, torch
from pathlib import Path
from torchvision.datasets import ImageFolder

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
pictures = ImageFolder("data/marks/test", transform=preprocess)
with torch.no_grad():
    words = model.encode_text(tokenizer([f"a photo of a {{name}}." for name in pictures.classes]), normalize=True)
    seen = model.encode_image(torch.stack([picture for picture, _ in pictures]), normalize=True)
found = (seen @ words.T).argmax(1)
print(f"{{100 * (found == torch.tensor(pictures.targets)).float().mean():.2f}}")
"""


def prepare() -> Path:
    """A folder with what somebody brings."""
    shutil.rmtree(SCRATCH, ignore_errors=True)
    python("-m", "benchmarks.made", "pictures", SCRATCH / "data" / "marks")
    made = ["zoo:mini-a", "--task", "marks", "--data", "data/marks", "--out", "expert.safetensors"]
    bico("finetune", *made, "--steps", "60", "--warmup", "6", home=SCRATCH / "elsewhere", cwd=SCRATCH)
    return SCRATCH


def main() -> None:
    folder, readme = prepare(), (ROOT / "README.md").read_text(encoding="utf-8")
    rows: list[list[str]] = []
    home = folder / ".bico"

    def step(name: str, command: str, took: Took, came: str) -> None:
        rows.append([name, f"{took.seconds:.1f}", f"{took.cpu:.1f}", came])
        write(folder / "printed" / f"{len(rows)}.txt", f"$ {command}\n{took.err}{took.out}")
        print(rows[-1], flush=True)

    def run(name: str, command: str, came: str) -> None:
        """Runs a line of the README.

        Arguments:
            came: Of what it prints, the line that the table shows.
        """
        assert command in readme, f"the README does not say: {command}"
        took = bico(*shlex.split(command.removeprefix("bico ")), home=home, cwd=folder)
        found = re.search(came, took.out + took.err, re.MULTILINE)
        assert found, f"{command} printed no {came!r}:\n{took.err}{took.out}"
        step(name, command, took, " ".join(found[0].split()).replace("|", "\\|"))

    run("plan", f"bico plan {TRANSFER}", r"^Plan: (?:.|\n)*? on the disk\.")
    run("quick run", f"bico transfer {TRANSFER}", r"^ *Best of .*|^ *WARNING.*")
    page = (folder / "results" / "report.html").read_text(encoding="utf-8")
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", page, re.DOTALL)
    said = html.unescape(re.sub(r"<[^>]+>", "", heading[1])) if heading else ""
    asked = len(re.findall(r"(?:src=|<link[^>]+href=|url\()[\"']?https?://", page))
    rows.append(["page", "", "", f"{len(page) / 1000:.0f} kB that ask for {asked} others: {said}"])
    run("measured again", f"bico evaluate {MODEL} --task marks --data data/marks", r"^marks .*")
    assert f"local-dir:{MODEL}" in readme
    used = python("-c", IN_OPEN_CLIP.format(folder=MODEL), cwd=folder)
    step("in open_clip", IN_OPEN_CLIP, used, f"{used.out.strip()} % with one prompt for each class")
    run("the same again", f"bico transfer {TRANSFER}", r"this very run was made")
    run("space", "bico cache du", r"^total .*")
    from bico.reporting.provenance import machine

    total = sum(float(row[1] or 0) for row in rows)
    lines = [
        "# newcomer",
        "",
        f"Made by `python -m benchmarks.newcomer` on {time.strftime('%Y-%m-%d %H:%M')}; {total:.0f} s from plan to the end, "
        f"{(size_of(home) + size_of(folder / 'results')) / 1e6:.0f} MB on the disk. Load at the end: {os.getloadavg()[0]:.1f}.",
        f"Machine: {machine()}.",
        "",
        table(["step", "time (s)", "CPU (s)", "came out"], rows),
    ]
    write(RESULTS, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
