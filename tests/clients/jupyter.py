"""JupyterLab through its session's URL: the page, and a kernel over the WebSocket.

usage: jupyter.py URL TOKEN
"""
import json
import sys
import urllib.request
import uuid

import websocket

url, token = sys.argv[1:]


def ask(path, body=None):
    request = urllib.request.Request(
        url + path,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


page = ask("/lab")
assert b"jupyter-config-data" in page, page[:500]
kernel = json.loads(ask("/api/kernels", {"name": "python3"}))["id"]
socket = websocket.create_connection(
    f"{url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?token={token}", timeout=60
)
message_id = uuid.uuid4().hex
header = {"msg_id": message_id, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
content = {"code": "6*7", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
socket.send(
    json.dumps(
        {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}
    )
)
while True:
    message = json.loads(socket.recv())
    if message["parent_header"].get("msg_id") != message_id:
        continue
    assert message["msg_type"] != "error", message
    if message["msg_type"] == "execute_result":
        print(message["content"]["data"]["text/plain"])
        break
