"""What was measured, as tables for people and as JSON for later comparison."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import CORES
from benchmarks.workload import FOLDER

PACKAGES = ("sereno", "numpy", "lightgbm", "scikit-learn", "pandas", "pyarrow", "deltalake", "polars")
PACKAGES += ("uvicorn", "uvloop", "httptools", "msgspec")
RESULTS = FOLDER / "results"
Run = dict[str, Any]  # one measured run: name, what it cost, and the load of the machine


def conditions() -> dict[str, Any]:
    """The machine, the versions and the time: figures mean nothing without them."""
    described = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    processor = next((what.strip() for key, _, what in described if key.strip() == "model name"), "unknown")
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=FOLDER, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "processor": processor,
        "cores": {"used": CORES, "present": os.cpu_count()},
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(runs: list[Run], compared_with: list[str], rows: int | None = None) -> str:
    """Medians by name, fastest first, each with its ratio to those in `compared_with`."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run["name"], []).append(run)
    middle = {
        name: {key: statistics.median(run[key] for run in its) for key in its[0] if key != "name"}
        for name, its in by_name.items()
    }
    compared_with = [name for name in compared_with if name in middle]
    columns = ["", "seconds (min–max)", *(f"× {name}" for name in compared_with)]
    columns += ["million rows/s"] * (rows is not None) + ["CPU s", "peak RSS MB", "peak PSS MB", "load", "rounds"]
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    for name in sorted(middle, key=lambda name: middle[name]["seconds"]):
        its, seconds = middle[name], [run["seconds"] for run in by_name[name]]
        cells = [name, f"{its['seconds']:.3g} ({min(seconds):.3g}–{max(seconds):.3g})"]
        cells += [f"{its['seconds'] / middle[other]['seconds']:.2f}" for other in compared_with]
        cells += [f"{rows / its['seconds'] / 1e6:.3g}"] if rows is not None else []
        cells.append(f"{its['cpu_seconds']:.3g}")
        cells += [f"{its[key]:.0f}" if its[key] else "–" for key in ("rss_mb", "pss_mb")]  # zero: not watched
        lines.append([*cells, f"{its['load']:.1f}", str(len(seconds))])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """A table of cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(
    kind: str, arguments: dict[str, Any], tables: dict[str, str], facts: dict[str, Any], folder: Path = RESULTS
) -> None:
    """Print the tables, and write them with all the facts into a folder."""
    about = facts["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    text = f"# {kind}, {about['date']}\n\n"
    text += f"{about['processor']}, {about['cores']['used']} of {about['cores']['present']} cores, "
    text += f"{about['memory_gb']} GB, {about['system']}; load average before {about['load_before'][0]}; "
    text += f"commit {about['commit'] or 'unknown'}; {versions}.\n"
    text += "".join(f"\n## {title}\n\n{body}\n" for title, body in tables.items())
    text += "".join(f"\nLeft out: {name}: {why}\n" for name, why in facts["left_out"].items())
    stem = f"{kind}-{about['date'][:16].replace(':', '')}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.md").write_text(text)
    (folder / f"{stem}.json").write_text(json.dumps({"arguments": arguments, **facts}, indent=1) + "\n")
    print(f"\n{text}\nwritten to {folder / stem}.md and .json")
