"""Generators that others have trained and published: files to variables of this project."""
