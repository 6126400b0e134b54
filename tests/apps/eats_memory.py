"""Takes a gigabyte, and says so if nobody minds."""
import sys

hoard = []
for _ in range(64):
    hoard.append(bytearray(16 << 20))
print("not limited", file=sys.stderr, flush=True)
sys.exit(1)
