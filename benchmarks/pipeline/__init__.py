"""The whole labeller beside a peer that works as published code does."""
