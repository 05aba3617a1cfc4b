"""Images: decoded, cropped and augmented, in batches."""
