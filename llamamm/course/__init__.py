"""What the notebooks need and the model does not: set-up, pictures, and the tie between notebook and package."""
