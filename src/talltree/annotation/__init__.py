"""Preferences of people: the study, its store on disk, tuple designs, scores and agreement."""
