"""GET /N answers with N bytes; what is sent is read, and its length said."""
import os
import socket
import threading


def serve(connection):
    reader = connection.makefile("rb")
    while request := reader.readline():
        method, path, _ = request.split()
        length = 0
        while (line := reader.readline()) != b"\r\n":
            name, value = line.split(b":", 1)
            if name.lower() == b"content-length":
                length = int(value)
        if method == b"POST":
            read = 0
            while read < length:
                read += len(reader.read1(min(length - read, 1 << 18)))
            content = str(read).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
        else:
            left = int(path[1:] or 0)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % left)
            chunk = bytes(1 << 18)
            while left:
                connection.sendall(chunk[:left])
                left -= min(left, len(chunk))


listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
