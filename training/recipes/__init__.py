"""Recipes: settings of whole runs, one TOML file each."""
