"""Makes 100 processes that ignore TERM and are nobody's children, and serves."""
import os
import runpy
import signal
import sys
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(100):
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        time.sleep(1000)
        os._exit(0)
    os.wait()
runpy.run_path(os.path.join(os.path.dirname(sys.argv[0]), "serve.py"))
