"""Makes docs/images/report.png: the first screen of the demo's report, as Chromium shows it.

    .venv/bin/shelfmark demo --workspace demo-workspace
    .venv/bin/python docs/scripts/screenshot.py [demo-workspace]

Needed: Chromium (on Debian and Ubuntu: apt install chromium). Run it again when the report has changed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parents[1] / "images" / "report.png"
WIDTH, HEIGHT = 1100, 1090  # px, down to the slider
MAX_BYTES = 200_000


def main() -> None:
    """Writes the picture of the workspace's newest report."""
    workspace = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-workspace")
    reports = sorted(workspace.glob("runs/*/report/index.html"))
    if not reports:
        sys.exit(f"{workspace}: no report; expected runs/*/report/index.html; run `shelfmark demo` first")
    OUT.parent.mkdir(exist_ok=True)
    take(reports[-1].resolve().as_uri(), OUT)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


def take(url: str, out: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Saves a page as a PNG of at most 200 kB: 128 colours are enough for text and plots."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium: not found; expected it on the PATH; on Debian and Ubuntu: apt install chromium")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    if os.getuid() == 0:
        options.append("--no-sandbox")  # Chromium has no sandbox for root; the page is our own
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [chromium, *options, f"--user-data-dir={folder}/profile", f"--screenshot={shot}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(128).save(out, optimize=True)
    if out.stat().st_size > MAX_BYTES:
        sys.exit(
            f"{out}: {out.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}; choose a smaller size"
        )


if __name__ == "__main__":
    main()
