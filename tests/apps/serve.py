"""Answers every request with 200 and a word."""
import os
import socket

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    connection.close()
