"""A page whose script fetches and opens a WebSocket; each tells which cookies it came with."""
import base64
import hashlib
import http.cookies
import http.server
import os
import struct

PAGE = b"""<!doctype html>
<p>fetched with <span id="fetched"></span></p>
<p>connected with <span id="connected"></span></p>
<script src="script.js"></script>
"""

SCRIPT = b"""
const show = (id, words) => { document.getElementById(id).textContent = words; };
fetch("cookies").then(async (answer) => show("fetched", await answer.text()));
const socket = new WebSocket(location.origin.replace("http", "ws"));
socket.onmessage = (message) => show("connected", message.data);
"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.connect()
        elif self.path == "/script.js":
            self.answer("text/javascript", SCRIPT)
        elif self.path == "/cookies":
            self.answer("text/plain", self.cookies())
        else:
            self.answer("text/html", PAGE)

    def answer(self, kind, content):
        self.send_response(200)
        for manner in "everywhere", "apart":
            partitioned = "; Partitioned" if manner == "apart" else ""
            self.send_header("Set-Cookie", f"{manner}=1; Secure; SameSite=None{partitioned}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def cookies(self):
        names = sorted(http.cookies.SimpleCookie(self.headers.get("Cookie", "")))
        return (" ".join(names) or "none").encode()

    def connect(self):
        magic = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        words = self.cookies()
        self.wfile.write(struct.pack("!BB", 0x81, len(words)) + words)
        while self.rfile.read(1):
            pass

    def log_message(self, *_):
        pass


address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
