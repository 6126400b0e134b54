"""Answers one request, then exits with status 0 and leaves a daemon behind."""
import os
import socket
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    while True:
        time.sleep(1000)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
connection, _ = listener.accept()
connection.recv(65536)
connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
time.sleep(0.3)
