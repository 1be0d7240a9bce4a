"""The data plane: workers that hold the base model and serve any mix of adapters in one batch.

Whichever of its modules is imported first, what torch's libraries read once is set before torch is there.
"""

from data_plane import onednn as onednn
from data_plane import openmp as openmp
