"""Answers with a word; /slow takes 3 s for 300 lines; a WebSocket is echoed."""
import base64
import hashlib
import http.server
import os
import struct
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.echo()
        elif self.path == "/slow":
            self.slow()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

    def slow(self):
        self.send_response(200)
        self.send_header("Content-Length", str(300 * 10))
        self.end_headers()
        for number in range(300):
            self.wfile.write(b"line %04d\n" % number)
            time.sleep(0.01)

    def echo(self):
        magic = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        # Small masked text frames, and the one that closes.
        while head := self.rfile.read(2):
            mask = self.rfile.read(4)
            payload = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(struct.pack("!BB", head[0], len(payload)) + payload)
            if head[0] & 15 == 8:
                return

    def log_message(self, *_):
        pass


address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.ThreadingHTTPServer.request_queue_size = 256
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
