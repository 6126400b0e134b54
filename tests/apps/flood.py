"""Writes as fast as it can while it serves."""
import os
import runpy
import sys
import threading


def flood():
    block = b"the quick brown fox jumps over the lazy dog\n" * 1000
    while True:
        os.write(1, block)


threading.Thread(target=flood, daemon=True).start()
runpy.run_path(os.path.join(os.path.dirname(sys.argv[0]), "serve.py"))
