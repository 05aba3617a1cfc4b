"""Videos: which frames a clip is made of, read from the file, in batches."""
