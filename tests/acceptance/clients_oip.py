"""What `tritonclient` and the `kserve` client say to a server, run by the Python of an environment that has them.

`python clients_oip.py tritonclient http://127.0.0.1:8000` prints one JSON object: what each conversation came to.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

COLUMNS: dict[str, tuple[str, Any]] = {  # two rows; NaN and null are missing values
    "age": ("INT32", np.array([20, 40], "int32")),
    "income": ("FP64", np.array([10.0, np.nan])),
    "member": ("BOOL", np.array([True, False])),
    "plan": ("BYTES", np.array(["gold", "basic"], object)),
    "since": ("BYTES", np.array([b"2026-05-01", b"2026-05-02"], object)),
    "basket": ("BYTES", np.array(['["wine","jam\u00f3n"]', "[]"], object)),
}
OUTPUTS = ("score", "rank", "plan", "day", "seen")


def values(array: Any) -> list[Any]:
    """As JSON can hold them."""
    plain = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    return [None if isinstance(v, float) and np.isnan(v) else v for v in plain]


def tritonclient(url: str) -> dict[str, Any]:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(url.removeprefix("http://"))
    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model": client.is_model_ready("offers"),
        "unknown": client.is_model_ready("none"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata("offers"),
    }
    version = found["metadata"]["versions"][0]
    found["version"] = client.get_model_metadata("offers", version) == found["metadata"]
    found["other_version"] = client.is_model_ready("offers", "2")

    def tensor(name: str, datatype: str, array: Any, binary: bool) -> Any:
        one = InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array, binary_data=binary)
        return one

    def inputs(binary: bool, repeat: int = 1) -> list[Any]:
        # its JSON would hold NaN as such, which is no JSON
        return [
            tensor(
                name, datatype, np.tile(array if binary or name != "income" else np.array([10.0, 5.0]), repeat), binary
            )
            for name, (datatype, array) in COLUMNS.items()
        ]

    for binary_in in (True, False):
        for binary_out in (True, False):
            for packing in (None, "gzip", "deflate"):
                outputs = None if binary_out else [InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
                result = client.infer(
                    "offers",
                    inputs(binary_in),
                    model_version=version,
                    outputs=outputs,
                    request_id="a-1",
                    request_compression_algorithm=packing,
                    response_compression_algorithm=packing,
                )
                response = result.get_response()
                assert (response["id"], response["model_version"]) == ("a-1", version)
                assert all(("data" in o) != binary_out for o in response["outputs"] if o["name"] != "rank"), response
                case = f"{'bytes' if binary_in else 'json'} in, {'bytes' if binary_out else 'json'} out, {packing}"
                found[case] = {
                    # where one of them is null, whole numbers come in JSON, of which `as_numpy` makes nothing
                    name: result.get_output(name)["data"] if name == "rank" else values(result.as_numpy(name))
                    for name in OUTPUTS
                }
    only = client.infer("offers", inputs(True), outputs=[InferRequestedOutput("plan")])
    found["only"] = [o["name"] for o in only.get_response()["outputs"]]
    many = [
        client.infer("offers", inputs(True, 200), response_compression_algorithm=p) for p in (None, "gzip", "deflate")
    ]
    found["many"] = [[float(np.nansum(r.as_numpy("score"))), len(r.as_numpy("seen"))] for r in many]
    found["later"] = values(client.async_infer("offers", inputs(True)).get_result().as_numpy("score"))
    matrix = np.array([[1.5, 2, 0], [2.5, 3, 1]], "float32")
    for binary in (True, False):
        result = client.infer("numbers", [tensor("input-0", "FP32", matrix, binary)])
        found[f"matrix {binary}"] = values(result.as_numpy("total"))

    def json_outputs(*names: str) -> list[Any]:
        return [InferRequestedOutput(name, binary_data=False) for name in names]

    def keys(binary: bool, *ids: int) -> list[Any]:
        shops = np.array(["north"] * len(ids), object)
        return [tensor("id", "INT64", np.array(ids), binary), tensor("shop", "BYTES", shops, binary)]

    for binary in (True, False):
        result = client.infer("scores", keys(binary, 8, 7), outputs=None if binary else json_outputs("score", "note"))
        answer = (
            {name: values(result.as_numpy(name)) for name in ("score", "note")}
            if binary
            else {name: result.get_output(name)["data"] for name in ("score", "note")}
        )
        found[f"looked up, {'bytes' if binary else 'json'}"] = [answer, result.get_response()["parameters"]]
    some = client.infer("scores", keys(True, 8, 7), outputs=[InferRequestedOutput("note")])
    found["looked up, some"] = [o["name"] for o in some.get_response()["outputs"]]
    spent = tensor("spent", "FP64", np.array([1.0, 2.0]), True)
    told = client.infer("scores", [*keys(True, 8, 7), spent], parameters={"lookup": True})
    found["looked up, asked for"] = values(told.as_numpy("score"))
    try:
        client.infer("scores", keys(True, 7, 9))
    except InferenceServerException as error:
        found["unknown key"] = [error.status(), error.message()]
    for case, wrong in (
        ("refused", [tensor("age", "INT64", np.array([17]), True)]),
        ("wrong shape", [tensor("age", "INT64", np.array([[1, 2]]), True)]),
    ):
        try:
            client.infer("offers", wrong)
        except InferenceServerException as error:
            found[case] = [error.status(), error.message()]
    client.close()
    return found


async def kserve(url: str) -> dict[str, Any]:
    import httpx
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    found: dict[str, Any] = {
        "live": [await v1.is_server_live(url), await v2.is_server_live(url)],
        "ready": await v2.is_server_ready(url),
        "model": [await v1.is_model_ready(url, "offers"), await v2.is_model_ready(url, "offers")],
        "unknown": await v2.is_model_ready(url, "none"),
    }
    objects = [
        {
            "age": 20,
            "income": 10.0,
            "member": True,
            "plan": "gold",
            "since": "2026-05-01",
            "basket": ["wine", "jam\u00f3n"],
        },
        {"age": 40, "income": None, "member": False, "plan": "basic", "since": "2026-05-02", "basket": []},
    ]
    for name, instances in (("objects", objects), ("lists", [list(o.values()) for o in objects])):
        found[f"v1 {name}"] = await v1.infer(url, {"instances": instances}, model_name="offers")
    for binary_in in (True, False):
        for binary_out in (True, False):
            inputs = []
            for name, (datatype, array) in COLUMNS.items():
                inputs.append(InferInput(name, list(array.shape), datatype))
                inputs[-1].set_data_from_numpy(array, binary_data=binary_in)
            parameters = {"binary_data_output": True} if binary_out else None
            request = InferRequest(model_name="offers", infer_inputs=inputs, request_id="a-1", parameters=parameters)
            answer = await v2.infer(url, request, model_name="offers")
            assert answer.id == "a-1"
            case = f"{'bytes' if binary_in else 'json'} in, {'bytes' if binary_out else 'json'} out"
            found[case] = {o.name: o.data if o.name == "rank" else values(o.as_numpy()) for o in answer.outputs}
    customers = {"instances": [{"shop": "north", "id": 7}]}
    found["v1 looked up"] = await v1.infer(url, customers, model_name="scores")
    ids = InferInput("id", [2], "INT64")
    ids.set_data_from_numpy(np.array([8, 7]))
    shops = InferInput("shop", [2], "BYTES")
    shops.set_data_from_numpy(np.array(["north", "north"], object))
    answer = await v2.infer(url, InferRequest(model_name="scores", infer_inputs=[ids, shops]), model_name="scores")
    found["v2 looked up"] = [values(answer.outputs[0].as_numpy()), answer.parameters]
    for case, client, body in (("v1 refused", v1, {"instances": [{}]}), ("v2 refused", v2, {"inputs": []})):
        try:
            await client.infer(url, body, model_name="offers")
        except httpx.HTTPStatusError as error:
            found[case] = [error.response.status_code, str(error)]
    await v1.close()
    await v2.close()
    return found


if __name__ == "__main__":
    which, address = sys.argv[1:]
    print(json.dumps(asyncio.run(kserve(address)) if which == "kserve" else tritonclient(address)))
