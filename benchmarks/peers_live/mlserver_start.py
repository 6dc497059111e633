"""MLServer: writes its settings into the folder and becomes `mlserver start`. No worker processes, so no hop to one."""

import json
import os
import socket
import sys
from pathlib import Path

model, port, folder, rows = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
grpc_port, metrics_port = (one.getsockname()[1] for one in free)
for one in free:
    one.close()
server = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port, "metrics_port": metrics_port}
server |= {"parallel_workers": 0, "debug": False}
settings = {"name": "live", "implementation": "benchmarks.peers_live.mlserver_model.Live", "parameters": {"uri": model}}
if rows:
    settings |= {"max_batch_size": rows, "max_batch_time": 0.001}
(folder / "settings.json").write_text(json.dumps(server))
(folder / "model-settings.json").write_text(json.dumps(settings))
os.execv(Path(sys.executable).parent / "mlserver", ["mlserver", "start", str(folder)])
