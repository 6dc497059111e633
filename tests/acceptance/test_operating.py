"""docs/operating.md: its backup is made and restored as it stands there, in place and elsewhere."""

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.project import DAY, NEXT_DAY, THIRD_DAY, Project

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text("utf-8")
BACK_UP, RESTORE = (
    re.search(rf"^## {title}.*?```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]  # type: ignore[index]
    for title in ("Back up", "Restore")
)


def as_written(script: str, project: Path, backup: Path) -> None:
    """Run a block of the page, with the paths of this test in place of its own. Whose files they are is root's affair."""
    scripts = Path(sys.executable).parent
    text = script.replace("/srv/bank", str(project)).replace("/backup", str(backup)).replace(".venv/bin", str(scripts))
    text = text.replace("credit-scoring", "total").replace("runuser -u sereno -- ", "")
    lines = [line for line in text.splitlines() if not line.startswith("chown")]
    done = subprocess.run(["bash", "-ec", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two nights that are published, one that is held, and a pause; and their backup beside them."""
    project = Project.new(tmp_path_factory.mktemp("nights") / "bank")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1"}
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\n')
    project.write(
        "answers/total/_delta_log/00000000000000000000.json", "{}"
    )  # that it is in the copy is all that is asked
    for night, day in enumerate((DAY, NEXT_DAY)):
        project.rows(day, 100 + night)
        project.run(day)
    project.rows(THIRD_DAY, 10)
    project.run(THIRD_DAY, code=3)
    project.sereno("pause", "total", "--why", "to see whether it is kept")
    backup = project.folder.parent / "backup"
    backup.mkdir()
    as_written(BACK_UP, project.folder, backup)
    return project


@pytest.mark.parametrize("place", ["bank", "elsewhere"])
@pytest.mark.parametrize("has_ledger", [True, False], ids=["with the ledger", "without it"])
def test_a_backup_is_restored(nights: Project, tmp_path: Path, place: str, has_ledger: bool) -> None:
    backup = nights.folder.parent / "backup"
    restored = Project(tmp_path / place)
    restored.within, restored.variables = True, nights.variables
    restored.folder.mkdir()
    shutil.copy(nights.folder / "weight.txt", restored.folder)
    script = RESTORE
    if not has_ledger:
        script = re.sub(r"^cp .*\n", "", script, flags=re.MULTILINE)
    script = re.sub(
        r"^\S*sereno health.*\n|.*sereno health.*\n", "", script, flags=re.MULTILINE
    )  # a held night is not well
    as_written(script, restored.folder, backup)

    assert (restored.folder / "answers" / "total" / "_delta_log" / "00000000000000000000.json").is_file()
    assert [v["version"] for v in restored.json("versions", "total") if v["in_service"]] == [2]
    states = {run["data_date"]: run["state"] for run in restored.json("runs", "total")}
    assert states == {DAY: "published", NEXT_DAY: "published", THIRD_DAY: "held"}
    assert restored.json("rollback", "total")["in_service"] == 1
    released = restored.json("release", THIRD_DAY)
    assert (released["state"], released["version"]) == ("published", 3)
    assert restored.published().num_rows == 10  # type: ignore[union-attr]
    with sqlite3.connect(restored.folder / ".sereno" / "ledger.sqlite") as ledger:
        (pauses,) = ledger.execute("SELECT count(*) FROM sereno_pauses").fetchone()
    ledger.close()
    assert pauses == has_ledger
