"""`python -m talltree` is the `talltree` command."""

import sys

from talltree.cli import main

sys.exit(main())
