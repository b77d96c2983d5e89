"""The local page on which people judge: for this machine alone unless told otherwise."""
