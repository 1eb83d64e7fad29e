"""`python -m streamcl.cli`."""

from streamcl.cli import main

main()
