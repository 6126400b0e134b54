"""Ignores TERM, and leaves a daemon of its own session and group that does too."""
import os
import runpy
import signal
import sys
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    print("daemon is up", flush=True)
    while True:
        time.sleep(1000)
runpy.run_path(os.path.join(os.path.dirname(sys.argv[0]), "serve.py"))
