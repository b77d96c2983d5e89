"""What goes into a run: prompts and corpora, read, checked and split."""
