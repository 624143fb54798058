"""``python -m pyro_iresnet.demo``."""

import sys

try:
    from .cli import app
except ModuleNotFoundError as error:
    sys.exit(
        f"The demo needs the package {error.name}, which is not installed. "
        "Install the extra: pip install 'pyro-iresnet[demo]', in a copy of the repository "
        "pip install '.[demo]'."
    )

if __name__ == "__main__":
    app()
