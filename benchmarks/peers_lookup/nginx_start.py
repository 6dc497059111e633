"""Becomes nginx with one worker, which answers every path with the same small file: nginx_start FOLDER PORT"""

import os
import sys
from pathlib import Path

folder, port = Path(sys.argv[1]), sys.argv[2]
SETTINGS = f"""
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections 512; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    open_file_cache max=4;
    {" ".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location / {{ try_files /answer.json =500; }}
    }}
}}
"""
(folder / "answer.json").write_text('{"probability":0.24690135780246914,"band":2,"segment":"low"}')
(folder / "nginx.conf").write_text(SETTINGS if os.getuid() else f"user root;{SETTINGS}")
os.execvp("nginx", ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "errors"])
