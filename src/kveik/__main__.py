"""`python -m kveik` is the command line."""

from __future__ import annotations

from kveik.cli import main

main()
