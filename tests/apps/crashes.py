"""Answers one request, then fails."""
import os
import socket
import sys

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
connection, _ = listener.accept()
connection.recv(65536)
connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
connection.close()
print("no more", file=sys.stderr, flush=True)
os._exit(42)
