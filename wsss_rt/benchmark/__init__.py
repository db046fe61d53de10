"""What labelling costs here, and whether what is fast is also right: what ``wsss-rt bench`` does."""
