"""``python -m pyro_iresnet``."""

import sys


def main() -> None:
    """Run the command, or name the package that is missing."""
    try:
        from .cli import app  # noqa: PLC0415  (needs the extra train)
    except ModuleNotFoundError as error:
        sys.exit(
            f"The command needs the package {error.name}, which is not installed. Install the "
            "extra: pip install 'pyro-iresnet[train]', in a copy of the repository "
            "pip install '.[train]'."
        )
    app()


if __name__ == "__main__":
    main()
