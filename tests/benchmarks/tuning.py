"""Whether a search for settings, killed on the way and continued, finds better ones than `towers init` proposes.

    python tests/benchmarks/tuning.py [--data ml-latest-small] [--trials 20] [--seeds 3] [--kill-after 5]
                                      [--folder tuned]

`towers init` on the tables as they are, `towers tune`, `kill -9` when so many trials are done and the next one has
begun, and the same command again, until it ends. It ends with status 1 unless all trials are there and the tuned
settings are ahead on validation, the whole interval of the lead above zero. An unfinished folder is continued. The
tables are read from the folder that TOWERS_DATA names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from towers.process import own_python


def main() -> None:
    """Tune, kill, continue, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-latest-small")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kill-after", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("tuned"))
    given = parser.parse_args()
    data = Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[3] / "shared" / "data") / given.data
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; set TOWERS_DATA to the folder of the public data sets")
    given.folder.mkdir(parents=True, exist_ok=True)
    tuning = given.folder / "runs" / "run-tuning"
    words = ("tune", "run.toml", "--trials", str(given.trials), "--seeds", str(given.seeds))
    if not (tuning / "study.jsonl").exists():
        tables = [f"--{name}={data / name}.parquet" for name in ("interactions", "items")]
        subprocess.run(command(given.folder, "init", *tables, "--force"), cwd=given.folder, check=True)
        tune_and_kill(given.folder, words, given.kill_after)
    subprocess.run(command(given.folder, *words), cwd=given.folder, check=True)
    sys.exit(judge(tuning, given.trials))


def command(folder: Path, *words: str) -> list[str]:
    """Return `towers` with these words, to be run in a folder."""
    return own_python("-m", "towers", *words, folder=folder)


def tune_and_kill(folder: Path, words: tuple[str, ...], after: int) -> None:
    """Tune until so many trials are done, and kill the process, which has begun the next one."""
    with subprocess.Popen(command(folder, *words), cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        done = 0
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            done += line.startswith("trial ")
            if done == after:
                process.kill()
                break
    print(f"killed after {done} trials", flush=True)


def judge(tuning: Path, trials: int) -> str | int:
    """Return what is wrong with the result, or 0."""
    found = json.loads((tuning / "report.json").read_text(encoding="utf-8"))
    if len(found["trials"]) != trials:
        return f"{len(found['trials'])} trials, expected {trials}"
    if found["validation"] is None:
        return "nothing better than run.toml was found"
    lead = found["validation"]["rows"][1]["lead"]
    return 0 if lead["low"] > 0 else f"the lead on validation, {lead}, is not clear of zero"


if __name__ == "__main__":
    main()
