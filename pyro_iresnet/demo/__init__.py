"""A command that fits flows to real data: ``python -m pyro_iresnet.demo``, with the extra ``demo``.

It fits two density estimators and a variational guide, each beside the model to try first.
"""

import warnings

# ArviZ warns at every import, and a user of this command cannot act on the warning.
warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
