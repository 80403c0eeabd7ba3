"""What is learned: maskers, classifiers, inpainters."""
