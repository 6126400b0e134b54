"""Answers 500 five times, then 200."""
import os
import socket

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
asked = 0
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    asked += 1
    if asked == 6:
        print("well now", flush=True)
    status = b"500 Sick" if asked < 6 else b"200 OK"
    connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    connection.close()
