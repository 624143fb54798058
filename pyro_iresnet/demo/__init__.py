"""The main job on real data: ``python -m pyro_iresnet.demo``.

Two density estimators and a variational guide, each beside what a user would try first. The command
needs the extra ``demo``.
"""

import warnings

# Said at every import of ArviZ, and nothing that a user of this command could act on.
warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
