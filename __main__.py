"""``python -m estimax``: the command line."""

from .inference.cli import main

raise SystemExit(main())
