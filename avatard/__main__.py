"""`python -m avatard`."""

from avatard.cli import main

main()
