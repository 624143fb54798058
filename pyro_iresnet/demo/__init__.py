"""A command that fits flows to real data: ``python -m pyro_iresnet.demo``, with the extra ``demo``.

It fits two densities and a variational guide, each beside the model to try first.
"""

import logging
import warnings

# ArviZ warns at every import, and a user of this command cannot act on the warning.
warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)

# A user of this command can act neither on the advice of Lightning, nor on its own use of torch.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=r"(?s).*(treespec|val_dataloader|num_workers)")
