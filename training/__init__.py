"""Train, evaluate, compare and exchange implicit networks; ``python -m training``."""

import os

# Must be set before torch is imported: OpenMP threads sleep instead of spin while they wait for each other. On a busy machine
# spinning makes small networks train ten times slower; on an idle one it gains almost nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
