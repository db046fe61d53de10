"""File input and output: finding, decoding, atomic writing, the manifest."""
