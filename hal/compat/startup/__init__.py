"""The folder that `hal run` puts on PYTHONPATH, for sitecustomize.py alone."""
