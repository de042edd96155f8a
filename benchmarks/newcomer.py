"""The way of somebody new: an expert and an ImageFolder of one's own, a plan, a quick run, its page, the model in open_clip.

    python -m benchmarks.newcomer

Each step is a command of the README, given as it stands there, in a process of its own; what it prints is kept and its time is
told. Expert and pictures are made beforehand. Writes benchmarks/results/newcomer.md, and what was printed to out/newcomer.
"""

import html
import re
import shlex
import shutil
import time
from pathlib import Path

from benchmarks.commands import ROOT, Took, bico, markdown, python, size, write

RESULTS = Path(__file__).parent / "results" / "newcomer.md"
SCRATCH = ROOT / "out" / "newcomer"
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
    folder = prepare()
    rows: list[list[str]] = []
    home = folder / ".bico"

    def step(name: str, command: str, took: Took, came: str) -> None:
        rows.append([name, f"{took.seconds:.1f}", f"{took.cpu:.1f}", f"`{command}`", came])
        write(folder / "printed" / f"{len(rows)}.txt", f"$ {command}\n{took.err}{took.out}")
        print(f"{rows[-1]}", flush=True)

    def run(name: str, command: str, came: str) -> Took:
        took = bico(*shlex.split(command.removeprefix("bico ")), home=home, cwd=folder)
        found = re.search(came, took.out + took.err, re.MULTILINE)
        assert found, f"{command} printed no {came!r}:\n{took.err}{took.out}"
        step(name, command, took, " ".join(found[0].split()))
        return took

    run("plan", f"bico plan {TRANSFER}", r"Plan: .*")
    made = run("quick run", f"bico transfer {TRANSFER}", r"^Model: .*|^.*Best of .*|^\| BiCo .*")
    (model,) = (folder / "results" / "models").iterdir()
    page = (folder / "results" / "report.html").read_text(encoding="utf-8")
    said = html.unescape(re.sub(r"<[^>]+>", "", re.search(r"<h1[^>]*>(.*?)</h1>", page, re.DOTALL)[1]))  # type: ignore[index]
    outside = re.findall(r"(?:src|href)=[\"']?https?://", page)
    rows.append(["page", "", "", "results/report.html", f"{len(page) / 1000:.0f} kB, {len(outside)} requests: {said}"])
    name = model.relative_to(folder)
    again = run("measured again", f"bico evaluate {name} --task marks --data data/marks", r"^marks .*")
    script = IN_OPEN_CLIP.format(folder=name)
    used = python("-c", script, cwd=folder)
    step("in open_clip", f'open_clip.create_model_and_transforms("local-dir:{name}")', used, f"{used.out.strip()} %")
    run("the same again", f"bico transfer {TRANSFER}", r"this very run was made")
    run("space", "bico cache du", r"^total .*")
    from bico.reporting.provenance import machine

    total = sum(float(row[1] or 0) for row in rows)
    lines = [
        "# newcomer",
        "",
        f"Made by `python -m benchmarks.newcomer` on {time.strftime('%Y-%m-%d %H:%M')}; {total:.0f} s from plan to the end, "
        f"{size(home, folder / 'results') / 1e6:.0f} MB on the disk.",
        f"Machine: {machine()}.",
        "",
        markdown(["step", "time (s)", "CPU (s)", "command", "came out"], rows),
    ]
    write(RESULTS, "\n".join(lines) + "\n")
    print("\n".join(lines))
    del made, again


if __name__ == "__main__":
    main()
