"""Where the command `bico` starts: needs nothing but Python, to say what is missing where something is."""

import sys

_OURS = {"bico", "flows", "storage", "tasks", "zoo_build"}


def main() -> None:
    """Runs the command line; without what it needs, says in one line what to install and exits with code 2."""
    try:
        from flows.cli import main as command_line

        command_line()
    except ModuleNotFoundError as missing:
        module = (missing.name or "").partition(".")[0]
        if module in _OURS:
            raise
        print(
            f"error: {module or missing} is not installed: the command line needs `pip install 'bico[pipeline]'`.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
