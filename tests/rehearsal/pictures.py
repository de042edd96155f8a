"""Screenshots by headless Chromium, if there is one."""

import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def shoot(url: str, file: Path, width: int = 1600, height: int = 1000, cut: int = 0, seconds: int = 15) -> None:
    """Opens a page in a browser that knows nothing, lets it run for so long, and keeps what is seen.

    Arguments:
        cut: Pixels to leave out at the right, where a page has a panel of no interest.
    """
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}",
                f"--virtual-time-budget={seconds * 1000}", "--timeout=60000", f"--screenshot={file}", url,
            ],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
    shrink(file, cut)


def shrink(file: Path, cut: int) -> None:
    """Keeps 256 colours: a picture of a page needs no more, and the repository keeps it for ever."""
    from PIL import Image

    with Image.open(file) as picture:
        small = picture.convert("RGB").crop((0, 0, picture.width - cut, picture.height)).quantize(256)
    small.save(file, optimize=True)
