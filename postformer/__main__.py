"""`python -m postformer` is the command `postformer`."""

from postformer.cli import main

main()
