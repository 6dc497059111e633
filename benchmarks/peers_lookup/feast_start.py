"""Becomes Feast's server of features: feast_start KIND FOLDER PORT"""

import os
import sys
from pathlib import Path

from benchmarks.peers_lookup.feast_store import settle

kind, folder, port = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
settle(folder, kind, os.environ.get("REDIS_PORT"))
options = ["--host", "127.0.0.1", "--port", port, "--workers", "1", "--no-access-log"]
options += ["--max-requests", "1000000000"]  # else its worker is replaced after every 1,000
os.execv(Path(sys.executable).parent / "feast", ["feast", "--chdir", str(folder), "serve", *options])
