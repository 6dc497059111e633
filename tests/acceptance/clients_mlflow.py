"""What MLflow's `ScoringServerClient` says to a server, run by the Python of an environment that has it.

`python clients_mlflow.py http://127.0.0.1:8000` prints one JSON object: what each conversation came to; with `lookups`
behind the address, those that ask by key.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

FRAME = pd.DataFrame(
    {
        "age": [20, 40],
        "income": [10.0, np.nan],  # NaN goes as such, which is no JSON
        "member": [True, False],
        "plan": pd.Categorical(["gold", "basic"]),
        "since": pd.to_datetime(["2026-05-01", "2026-05-02"]).date,
        "seen_at": pd.to_datetime(
            ["2026-05-01T10:00:00+02:00", "2026-05-02T00:00:00.000001Z"], utc=True, format="ISO8601"
        ),
        "basket": [["wine", "jamón"], []],
    }
)


def main(url: str) -> dict[str, Any]:
    where = urlsplit(url)
    client = ScoringServerClient(where.hostname, where.port)
    client.wait_server_ready(timeout=60)
    client.ping()
    found: dict[str, Any] = {"version": client.get_version()}

    def said(data: Any, **more: Any) -> Any:
        return client.invoke(data, **more)["predictions"]

    found["frame"] = said(FRAME)
    found["frame with an index and another order"] = said(FRAME[FRAME.columns[::-1]].set_axis(["a", "b"]))
    found["frame with keys"] = said(FRAME.assign(id=[7, 8]))
    found["one row"] = said(FRAME.iloc[[0]])
    found["no row"] = said(FRAME.iloc[:0])
    rows = json.loads(
        FRAME.assign(since=FRAME["since"].astype(str)).to_json(orient="records", date_format="iso", date_unit="us")
    )
    found["list of objects"] = said(rows)
    found["list of lists"] = said([list(row.values()) for row in rows])
    found["params"] = said(FRAME, params={"temperature": 0.5})
    # bodies of one's own are given as text: what the client does with a dict fails in the client itself
    found["records"] = said(json.dumps({"dataframe_records": rows}))
    found["instances"] = said(json.dumps({"instances": rows}))
    found["inputs"] = said(json.dumps({"inputs": {name: [row[name] for row in rows] for name in rows[0]}}))

    answer = client.invoke(FRAME)
    frame = answer.get_predictions()
    found["as a frame"] = [list(frame.columns), frame["plan"].tolist(), len(frame)]

    for name, data in (("refused", FRAME.assign(age=[17, 18])), ("no form", "[1, 2]"), ("no json", "{")):
        try:
            client.invoke(data)
        except Exception as error:  # noqa: BLE001 - it raises nothing narrower
            found[name] = str(error)
    return found


def lookups(url: str) -> dict[str, Any]:
    where = urlsplit(url)
    client = ScoringServerClient(where.hostname, where.port)
    keys = pd.DataFrame({"id": [8, 7], "shop": ["north", "north"]})

    def said(data: Any, **more: Any) -> Any:
        return client.invoke(data, **more)["predictions"]

    found: dict[str, Any] = {
        "frame": said(keys),
        "frame with an index": said(keys.set_axis(["a", "b"])),
        "frame with features": said(keys.assign(spent=[1.0, 2.0]), params={"lookup": True}),
        "records": said(json.dumps({"dataframe_records": keys.to_dict("records")})),
        "inputs": said(json.dumps({"inputs": keys.to_dict("list")})),
        "list of objects": said(keys.to_dict("records")),
        "live": said(keys.assign(spent=[1.0, 2.0])),
    }
    for name, data in (("unknown key", keys.assign(id=[7, 9])), ("no key", keys.assign(id=["seven", "eight"]))):
        try:
            client.invoke(data)
        except Exception as error:  # noqa: BLE001 - it raises nothing narrower
            found[name] = str(error)
    return found


if __name__ == "__main__":
    json.dump((lookups if sys.argv[2:] == ["lookups"] else main)(sys.argv[1]), sys.stdout)
