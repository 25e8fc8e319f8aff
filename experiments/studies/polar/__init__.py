"""What is POLAR pre-training worth to a preference model?"""
