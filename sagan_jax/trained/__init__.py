"""Using a trained model: sampling, sample files, export."""
