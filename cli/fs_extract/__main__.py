"""The entry point: `fs-extract`, and `python -m fs_extract`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `fs-extract`."""
    try:
        # Imported here, so that Ctrl-C during the imports ends as quietly as any other.
        from fs_extract.commands import run

        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
