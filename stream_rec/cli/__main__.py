"""`python -m stream_rec.cli` is the command `stream-rec`."""

from stream_rec.cli.main import main

main()
