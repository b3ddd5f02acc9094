"""The wheel in an empty environment, outside of the repository: installed by pip, then doctor, init, train and serve.

    python tests/benchmarks/wheel.py [--folder DIR] [--keep]

The commands are those of docs/guides/install-with-pip.md, with `make wheel` before them. They download up to some
gigabytes, so this is no part of the suite; `tests/test_packaging.py` compares the wheel's metadata with the locks. Ends
with status 1 at the first command that fails, whose output is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 300


def main() -> None:
    """Install, train and serve, and say how long each step took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="Where to work; made if it is not there.")
    parser.add_argument("--keep", action="store_true", help="Leave the environment there.")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="two-towers-wheel-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        attempt(folder)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)


def attempt(folder: Path) -> None:
    """Do every step in `folder`, each in an environment that knows nothing of this repository."""
    device = "cpu" if shutil.which("nvidia-smi") is None else "gpu"
    run(ROOT, "make", "wheel")
    dist = folder / "dist"
    shutil.copytree(ROOT / "dist", dist, dirs_exist_ok=True)
    wheels = [*dist.glob("two_towers-*.whl"), *(dist.glob("fbgemm_gpu-*+cpu-*.whl") if device == "cpu" else ())]
    run(folder, sys.executable, "-m", "venv", "venv")
    python, towers = str(folder / "venv/bin/python"), str(folder / "venv/bin/towers")
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(folder, *pip, "install", "--quiet", "--constraint", f"dist/constraints-{device}.txt", *map(str, wheels))
    run(folder, *pip, "check")
    found = run(folder, *pip, "list", "--format", "freeze")
    print("  with", ", ".join(re.findall(r"(?m)^(?:torch|torchrec|fbgemm.gpu.*|faiss.cpu|mlflow|pandas)==.*$", found)))
    run(folder, towers, "doctor")
    run(folder, towers, "dataset", "shop", "--size", "tiny")
    tables = [f"--{name}=data/shop/{name}.parquet" for name in ("interactions", "items", "users")]
    run(folder, towers, "init", *tables)
    run(folder, towers, "train", "run.toml", "--set", "training.epochs=2")
    run(folder, towers, "deploy", "runs/run-1")
    serve(folder, towers)


def run(folder: Path, *words: str) -> str:
    """Run a command, show it with its time, and return what it said; end with status 1 if it fails."""
    began = time.monotonic()
    ended = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    shown = " ".join(Path(word).name if word.startswith(str(folder)) else word for word in words)
    print(f"{time.monotonic() - began:6.1f} s  {shown}", flush=True)
    if ended.returncode:
        print(f"{ended.stdout}{ended.stderr}\nended with status {ended.returncode}")
        raise SystemExit(1)
    return ended.stdout


def serve(folder: Path, towers: str) -> None:
    """Serve the bundle and ask it once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    words = [towers, "serve", "runs/production", "--port", str(port)]
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and time.monotonic() - began < SECONDS_TO_START:
            try:
                address = f"http://127.0.0.1:{port}/recommendations/10001?k=3"
                with build_opener(ProxyHandler({})).open(address, timeout=10) as response:
                    answer = json.load(response)
                break
            except OSError:
                time.sleep(0.2)
        else:
            print("the service does not answer")
            raise SystemExit(1)
    finally:
        process.terminate()
        process.communicate()
    item_ids = [one["item_id"] for one in answer["items"]]
    print(f"{time.monotonic() - began:6.1f} s  towers serve runs/production: user 10001 is recommended {item_ids}")
    if len(answer["items"]) != 3 or process.returncode:
        raise SystemExit(1)


def environment() -> dict[str, str]:
    """This process's environment without paths to the repository."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    main()
