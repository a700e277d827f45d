"""Score texts: encode them, choose what to read (probes), plan batches, run the model."""
