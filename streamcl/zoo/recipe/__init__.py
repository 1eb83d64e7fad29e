"""How the zoo was made: the shipped pictures, the base model, its pre-training and its scores. Not for run time."""
