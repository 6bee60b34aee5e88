"""A trained model in use: sampling, samples as files, export."""
