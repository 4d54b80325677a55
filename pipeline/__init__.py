"""The workflow: five DVC stages, and the commands that stand on them."""
