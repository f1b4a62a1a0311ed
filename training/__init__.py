"""Training: data, recipes, the loop; ``python -m training``."""

import os

# Before torch is imported: threads that wait for each other asleep instead of spinning. On a machine that is busy with
# other things as well, spinning makes small networks train ten times slower; on an idle one it gains next to nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
