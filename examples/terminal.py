"""What the examples' demos are told with: real commands, typed in a folder of their own."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

PATIENCE_SECONDS = 60
REPOSITORY = Path(__file__).resolve().parents[1]


def fresh_folder(name: str) -> Path:
    """A folder of that name under the repository's root that is not there yet: demo, demo-2 …"""
    names = (REPOSITORY / (f"{name}-{number}" if number > 1 else name) for number in count(1))
    return next(folder for folder in names if not folder.exists())


def copy_files(source: Path, names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names:
        file = source / name
        (shutil.copytree if file.is_dir() else shutil.copy)(file, folder / name)


def how_to_get_there(folder: Path) -> str:
    """The commands that a reader types to go on in the folder."""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    in_venv = sys.prefix != sys.base_prefix
    return f"cd {shown}" + (f"\n  source {sys.prefix}/bin/activate" if in_venv else "")


def heading(text: str) -> None:
    print(f"\n\n── {text} " + "─" * max(3, 100 - len(text)), flush=True)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"\nThe demo stops: the last command should have printed something like {pattern}.")
    return found[1]


class Terminal:
    """Runs commands in one folder, showing each as a user would type it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The story needs the settings of this folder, not of whoever runs it.
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SERENO_")}
        self.environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns)}

    def run(self, *command: str, expect: int = 0) -> str:
        """What the command printed, which is also shown as it comes. Ends the demo if the exit code is another."""
        lines = []
        with self._start(command) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                lines.append(line)
        if process.returncode != expect:
            sys.exit(f"\nThe demo stops: the last command should end with {expect}, not {process.returncode}.")
        if expect:
            print(f"  (exit code {expect})", flush=True)
        return "".join(lines)

    @contextmanager
    def background(self, *command: str, until: str) -> Iterator[str]:
        """A command that goes on until the block is left, which begins when what it printed matches `until`.

        Gives what the pattern's group found.
        """
        process = self._start(command, " &")
        assert process.stdout is not None
        impatience = threading.Timer(PATIENCE_SECONDS, process.kill)
        impatience.start()
        try:
            seen = ""
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                seen += line
                if found := re.search(until, seen):
                    break
            else:
                sys.exit(f"\nThe demo stops: the last command should go on, but ended with {process.wait()}.")
            impatience.cancel()
            rest = threading.Thread(target=self._show, args=[process.stdout], daemon=True)
            rest.start()
            yield found[1]
        finally:
            impatience.cancel()
            process.terminate()
            process.wait()
        rest.join()

    def _start(self, command: tuple[str, ...], end: str = "") -> "subprocess.Popen[str]":
        program, *rest = command
        quoted = (f'"{argument}"' if " " in argument else argument for argument in command)
        print(f"\n$ {' '.join(quoted)}{end}", flush=True)
        arguments = [sys.executable, "-m", "sereno", *rest] if program == "sereno" else [sys.executable, *rest]
        return subprocess.Popen(
            arguments, cwd=self.folder, env=self.environment, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _show(self, stream: Iterator[str]) -> None:
        for line in stream:
            print(f"  {line}", end="", flush=True)
