"""What chapters share: figures, checks, exercises. Nothing here knows of models."""
